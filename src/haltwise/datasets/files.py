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


def read_bytes(path: Path, announced: Callable[[BinaryIO], int] | None = None) -> bytes:
    """Read a file, decompressed if its name ends in `.gz` or `.xz`.

    Args:
        path: The file.
        announced: Reads the header and returns the size of what follows, which is returned then;
            one byte more, if there is more.

    Raises:
        InputError: The file is missing, truncated or corrupt, or far larger than it is compressed.
    """
    try:
        with path.open("rb") as plain:
            limit = most_content(os.fstat(plain.fileno()).st_size)
            file: Any = plain
            if path.suffix == ".gz":
                file = gzip.GzipFile(fileobj=plain)
            elif path.suffix == ".xz":
                # Its header may ask for gigabytes before it gives a byte.
                lzma.LZMADecompressor(memlimit=_XZ_MEMORY).decompress(plain.read(2**16), 1)
                plain.seek(0)
                file = lzma.LZMAFile(plain)
            size = limit if announced is None else announced(file)
            require(
                file is plain or size <= limit,
                f"{path} announces {size} bytes in so small a {path.suffix} file; if they are "
                "right, decompress it",
            )
            content: bytes = file.read(size + 1 if file is not plain else -1)
        require(
            announced is not None or file is plain or len(content) <= limit,
            f"{path} holds more than {limit} bytes in so small a {path.suffix} file; if they are "
            "right, decompress it",
        )
        return content
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{path} is truncated or corrupt ({error}): a whole {path.suffix} file was expected; "
            "fetch it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; a readable file was expected"
        ) from None


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
