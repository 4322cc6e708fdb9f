"""Tensors and JSON on disk: safetensors only, written whole or not at all.

Nothing is ever unpickled, and nothing in a file is used before its checksum, names, shapes and
dtypes are known to be right.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from haltwise._core.errors import InputError, require

__all__ = [
    "digest",
    "flush_all",
    "load_tensors",
    "make_directory",
    "most_content",
    "read_bytes",
    "read_json",
    "save_tensors",
    "write_atomically",
]

_KEY = "haltwise"  # the metadata entry with the JSON document
_DIGEST = "blake2b"  # and the one with the checksum
_ROOM = 200 * 2**20  # bytes that any compressed file may hold


def make_directory(path: Path) -> None:
    """Create `path` and what lies above it, if missing, or raise an `InputError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create {path}: {error.strerror}; choose another directory"
        ) from error


def flush_all() -> None:
    """Let all files survive a power cut that were written with `flush=False`: one wait for many."""
    if hasattr(os, "sync"):
        os.sync()


def write_atomically(path: Path, content: bytes, *, new: bool = False, flush: bool = True) -> None:
    """Write `content` under a temporary name, flush it to disk and rename it to `path`.

    Args:
        path: Threads, processes and hosts may write it at once: it holds what one of them wrote.
        content: What it shall hold.
        new: Whether to refuse a file that is there already.
        flush: Whether to wait for the disk; if not, call `flush_all` once for many files.

    Raises:
        InputError: The directory is full, read-only or missing, there is such a file, or the path
            is that of a directory; nothing is left behind.
    """
    require(
        path.name not in ("", "..") and not path.is_dir(),
        f"{path} is a directory; name a file in it",
    )
    # No process id, which containers and hosts that share a directory may have in common.
    flush = flush or not hasattr(os, "sync")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        if new:
            _link(temporary, path)
        else:
            temporary.replace(path)
        if flush:
            _flush_directory(path.parent)
    except FileExistsError:
        raise InputError(f"there is a file {path} already; choose another name") from None
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; free some space there or choose another "
            "directory"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone after a success, or never made
            temporary.unlink()


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name, unless that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # some mounts know no links
        path.open("xb").close()
        temporary.replace(path)


def _flush_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut, where the platform can."""
    with contextlib.suppress(OSError):  # Windows opens no directories, some mounts sync none
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_bytes(path: Path) -> bytes:
    """Read a file, or raise an `InputError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def most_content(size: int) -> int:
    """The most bytes that a compressed file of `size` bytes may hold.

    Images and losses shrink to a tenth; a thousandth is made to fill the memory.
    """
    return max(_ROOM, 20 * size)


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file, or raise an `InputError`."""
    content = read_bytes(path)
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); restore it from a copy") from None
    require(isinstance(document, dict), f"{path} holds no JSON object; restore it from a copy")
    return dict(document)


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    new: bool = False,
    flush: bool = True,
) -> None:
    """Write tensors and a JSON document to one safetensors file; see `write_atomically`."""
    own = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    document = json.dumps(metadata)
    content = save(own, {_KEY: document, _DIGEST: digest(own, document)})
    write_atomically(path, content, new=new, flush=flush)


def digest(tensors: Mapping[str, Tensor], document: str) -> str:
    """A checksum of all that a file holds; safetensors has none of its own."""
    checksum = hashlib.blake2b(document.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        checksum.update(repr((name, value.dtype, tuple(value.shape))).encode())
        checksum.update(value.cpu().flatten().view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the JSON document of a file that `save_tensors` wrote.

    Raises:
        InputError: There is no such file, or it is corrupt, or not one of ours.
    """
    content = read_bytes(path)  # not mapped: a file that changes later would change the tensors
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        header = header.get("__metadata__", {})
        document = header.get(_KEY)
        if document is not None:
            if header.get(_DIGEST) != digest(tensors, document):
                raise ValueError("its checksum does not match")
            metadata = json.loads(document)
            if not isinstance(metadata, dict):
                raise ValueError("its metadata is no JSON object")
            return tensors, metadata
    except KeyError as error:
        raise InputError(
            f"{path} holds numbers of the type {error}, which is not supported; restore it from a "
            "copy or train again"
        ) from None
    except (SafetensorError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is corrupt or no safetensors file ({error}); restore it from a copy or train "
            "again"
        ) from None
    raise InputError(f"{path} is a safetensors file, but not one that haltwise wrote")
