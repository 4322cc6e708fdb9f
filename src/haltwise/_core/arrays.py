"""Arrays of NumPy's: of .npz archives, which cannot fill the memory or execute anything; masked."""

import io
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from haltwise._core.errors import InputError, require
from haltwise._core.files import most_content, read_bytes

__all__ = ["array_names", "read_arrays", "require_unmasked"]

_SUFFIX = ".npy"


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an archive, empty if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # whatever a hostile archive raises, it is none
        return []
    return [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]


def read_arrays(path: Path, wanted: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read plain arrays; nothing in the file is ever executed.

    Args:
        path: An .npz file.
        wanted: Names of those to read, as far as they are there; all if None.

    Raises:
        InputError: There is no such file, it is no archive of plain arrays, or it holds far more
            than such a small file should.
    """
    content = read_bytes(path)
    require(
        not content.startswith(npy.MAGIC_PREFIX),
        f"{path} holds a single array; write an .npz file with numpy.savez",
    )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            fits = size <= most_content(len(content))
            found = {
                name: _read_array(archive, entry)
                for entry in entries
                if (name := entry.filename.removesuffix(_SUFFIX)) != entry.filename
                and (wanted is None or name in wanted)
                and fits
            }
    except Exception as error:
        raise InputError(
            f"{path} is no .npz file of plain arrays ({error or type(error).__name__}); write it "
            "with numpy.savez"
        ) from None
    require(
        fits,
        f"{path} holds {size} bytes, too many for so small a file; if that is right, write it with "
        "numpy.savez",
    )
    return found


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, only if its header asks for as many bytes as there are."""
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, in_columns, dtype = read_header(file)
        if dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"{entry.filename} holds {dtype.name}, no numbers and no text")
        body = file.read()
    if len(body) != dtype.itemsize * np.prod(shape, dtype=object):
        raise ValueError(f"{entry.filename} is not as long as its header says")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if in_columns else "C")


def require_unmasked(value: object, name: str) -> None:
    """Raise an `InputError` for a masked array, as what it masks would be taken for numbers."""
    require(
        not np.ma.is_masked(value),
        f"{name} is a masked array, and what it masks would count as numbers; fill it by "
        f"{name}.filled(0), and multiply by a mask of your own, an array ~{name}.mask beside it",
    )
