"""Readers of the file formats; whatever is wrong with a file is one sentence that names it."""

import contextlib
import gzip
import itertools
import lzma
import math
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast, final

import numpy as np
from numpy.typing import NDArray

from haltwise._core.errors import InputError, require
from haltwise._core.files import most_content

__all__ = [
    "CIFAR_RECORD",
    "opened",
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
_XZ_MEMORY = 70 * 2**20  # bytes, enough for xz -9
_PORTION = 2**26  # bytes; the original archive has files of half of it
_MEMBERS = 1000  # of an archive that are looked at


@final
class _Portions(gzip.GzipFile):
    """A gzipped file that gives little at once: a tar archive's headers may ask for gigabytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _PORTION:
            raise ValueError(f"it asks for more than {_PORTION} bytes at once")
        return super().read(size)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file, decompressed if its name ends in `.gz` or `.xz`; with the most it may hold."""
    try:
        with path.open("rb") as plain:
            size = os.fstat(plain.fileno()).st_size
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=plain) as file:
                    yield cast("BinaryIO", file), most_content(size)
            elif path.suffix == ".xz":
                # Its header may ask for gigabytes of memory before there is a byte.
                lzma.LZMADecompressor(memlimit=_XZ_MEMORY).decompress(plain.read(2**16), 1)
                plain.seek(0)
                with lzma.LZMAFile(plain) as file:
                    yield cast("BinaryIO", file), most_content(size)
            else:
                yield plain, size
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{path} is truncated or corrupt ({error}): a whole {path.suffix} file was expected; "
            "fetch it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; a readable file was expected"
        ) from None


def _rest(path: Path, file: BinaryIO, most: int, size: int) -> bytearray:
    """Read `size` bytes, or as many as there are, and one more if there is another."""
    content = bytearray()
    while piece := file.read(min(2**20, min(size, most) + 1 - len(content))):
        content += piece  # at once, decompressing would take the memory twice
    require(
        len(content) <= most or size < most,
        f"{path} holds more than {most} bytes, too many for so small a {path.suffix} file; if "
        "that is right, decompress it first",
    )
    return content


def read_bytes(path: Path) -> bytearray:
    """Read a file, decompressed if its name ends in `.gz` or `.xz`.

    Raises:
        InputError: The file is missing, truncated or corrupt, or far larger than it is compressed.
    """
    with opened(path) as (file, most):
        return _rest(path, file, most, most)


def read_idx(path: Path, num_dims: int) -> NDArray[np.uint8]:
    """Read an IDX file, plain or compressed.

    Args:
        path: The file.
        num_dims: 3 for images [N, height, width], 1 for labels [N].

    Raises:
        InputError: It is no IDX file of that kind, or its size is not the one in its header.
    """
    start, expected = 4 + 4 * num_dims, _KINDS[num_dims]
    with opened(path) as (file, most):
        header = file.read(start)
        require(
            len(header) == start,
            f"{path} has {len(header)} bytes, which is less than the {start} of the header of "
            f"{expected}; is it truncated?",
        )
        magic, *shape = struct.unpack(f">{1 + num_dims}I", header)
        other = _KINDS.get(magic - 0x0800)
        require(
            other == expected,
            f"{path}: expected {expected}, found "
            + (f"{other}; are the files swapped?" if other else f"the magic number {magic}"),
        )
        size = math.prod(shape)
        content = _rest(path, file, most, size)
    require(
        len(content) == size,
        f"{path} has {f'more than {size}' if len(content) > size else len(content)} bytes after "
        f"its header, which gives {' x '.join(map(str, shape))} = {size}; it is truncated or not "
        "an IDX file",
    )
    require(size > 0 or shape[0] == 0, f"{path} holds images without pixels")
    return np.frombuffer(content, np.uint8).reshape(shape if size else (0, *shape[1:]))


def read_cifar(path: Path, content: bytes | bytearray | None = None) -> NDArray[np.uint8]:
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
        with _Portions(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            members = {  # links could lead anywhere
                Path(member.name).name: member
                for member in itertools.islice(archive, _MEMBERS)
                if member.isreg() and not member.issparse()
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
