"""Tensors and JSON on disk: safetensors only, written whole or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from haltwise._errors import InputError

__all__ = ["digest", "load_tensors", "save_tensors", "write_atomically"]

_KEY = "haltwise"  # the metadata entry with the JSON document
_DIGEST = "blake2b"  # and the one with the checksum


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, flush it to disk and rename it to `path`.

    Raises:
        InputError: The directory is full, read-only or missing; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; free some space there or choose another "
            "directory"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone after a success, or never made
            temporary.unlink()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document to one safetensors file, atomically.

    Raises:
        InputError: The file cannot be written.
    """
    own = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    document = json.dumps(metadata)
    write_atomically(path, save(own, {_KEY: document, _DIGEST: digest(own, document)}))


def digest(tensors: Mapping[str, Tensor], document: str) -> str:
    """A checksum of all that a file holds; safetensors has none of its own."""
    checksum = hashlib.blake2b(document.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        checksum.update(repr((name, value.dtype, tuple(value.shape))).encode())
        checksum.update(value.cpu().flatten().view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON document of a file that `save_tensors` wrote.

    Raises:
        InputError: There is no such file, or it is corrupt, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            document = header.get(_KEY)
            if document is None:
                raise InputError(f"{path} is a safetensors file, but not one that haltwise wrote")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _DIGEST in header and header[_DIGEST] != digest(tensors, document):
            raise ValueError("its checksum does not match")
        return tensors, json.loads(document)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is corrupt or no safetensors file ({error}); restore it from a copy or train "
            "again"
        ) from None
