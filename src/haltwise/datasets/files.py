"""Readers of the file formats; whatever is wrong with a file is one sentence that names it."""

import gzip
import lzma
import math
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haltwise._core.errors import InputError, require

__all__ = [
    "CIFAR_RECORD",
    "read_bytes",
    "read_cifar",
    "read_cifar_tar",
    "read_idx",
    "require_labels",
]

# By number of dimensions; the magic number is 0x08 for bytes, then that number.
_KINDS = {1: "labels (IDX magic 2049)", 3: "images (IDX magic 2051)"}
CIFAR_RECORD = 1 + 3 * 32 * 32
"""Size of a CIFAR-10 record in bytes: the label, then red, green and blue planes."""


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if its name ends in `.gz` or `.xz`.

    Raises:
        InputError: The file is missing, truncated or corrupt.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            return gzip.decompress(content)
        return lzma.decompress(content) if path.suffix == ".xz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{path} is truncated or corrupt ({error}): a whole {path.suffix} file was expected; "
            "fetch it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; a readable file was expected"
        ) from None


def read_idx(path: Path, num_dims: int) -> NDArray[np.uint8]:
    """Read an IDX file, plain or gzipped.

    Args:
        path: The file.
        num_dims: 3 for images [N, height, width], 1 for labels [N].

    Raises:
        InputError: It is no IDX file of that kind, or its size is not the one in its header.
    """
    content = read_bytes(path)
    start, expected = 4 + 4 * num_dims, _KINDS[num_dims]
    require(
        len(content) >= start,
        f"{path} has {len(content)} bytes, which is less than the {start} of the header of "
        f"{expected}; is it truncated?",
    )
    magic, *shape = struct.unpack(f">{1 + num_dims}I", content[:start])
    other = _KINDS.get(magic - 0x0800)
    require(
        other == expected,
        f"{path}: expected {expected}, found "
        + (f"{other}; are the files swapped?" if other else f"the magic number {magic}"),
    )
    size = math.prod(shape)
    require(
        len(content) - start == size,
        f"{path} has {len(content) - start} bytes after its header, which gives "
        f"{' x '.join(map(str, shape))} = {size}; it is truncated or not an IDX file",
    )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(path: Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read a CIFAR-10 binary file, plain or `.xz`: records [N, 3073] of label and pixels.

    Args:
        path: The file.
        content: What stands in it, if that has been read already.

    Raises:
        InputError: The size is not a whole number of records, or a label is above 9.
    """
    content = read_bytes(path) if content is None else content
    require(
        len(content) > 0 and len(content) % CIFAR_RECORD == 0,
        f"{path} has {len(content)} bytes, expected a multiple of {CIFAR_RECORD} (a label and "
        "3 x 32 x 32 pixels); it is truncated or not a CIFAR-10 binary file",
    )
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
    require_labels(path, records[:, 0])
    return records


def read_cifar_tar(path: Path, names: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Read CIFAR-10 files of a tar archive, in `cifar-10-batches-bin/` in the original one.

    Raises:
        InputError: The archive is truncated or lacks a file, or a file is bad.
    """
    try:
        with tarfile.open(path) as archive:
            members = {  # links could lead anywhere
                Path(member.name).name: member for member in archive if member.isreg()
            }
            found = {
                name: file.read()
                for name in names
                if name in members and (file := archive.extractfile(members[name]))
            }
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise InputError(
            f"{path} is truncated or corrupt ({error}): a whole tar archive was expected; "
            "fetch it again"
        ) from None
    missing = [name for name in names if name not in found]
    require(not missing, f"{path} lacks {', '.join(missing)}, expected {', '.join(names)}")
    return [read_cifar(path / name, found[name]) for name in names]


def require_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    """Raise `InputError` unless there are labels and all lie below 10."""
    require(len(labels) > 0, f"{path} holds no example, expected at least 1")
    require(labels.max() <= 9, f"{path} holds the label {labels.max()}, expected 0 to 9")
