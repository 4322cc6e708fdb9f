"""Tensors and JSON on disk: safetensors only, written whole or not at all."""

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

__all__ = ["load_tensors", "save_tensors", "write_atomically"]

_KEY = "haltwise"  # the one metadata entry, a JSON document


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
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror}; free some space there or choose another "
            "directory"
        ) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document to one safetensors file, atomically.

    Raises:
        InputError: The file cannot be written.
    """
    own = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    write_atomically(path, save(own, {_KEY: json.dumps(metadata)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON document of a file that `save_tensors` wrote.

    Raises:
        InputError: There is no such file, or it is corrupt, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            document = (file.metadata() or {}).get(_KEY)
            if document is None:
                raise InputError(f"{path} is a safetensors file, but not one that haltwise wrote")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(document)  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is corrupt or no safetensors file ({error}); restore it from a copy or train "
            "again"
        ) from None
