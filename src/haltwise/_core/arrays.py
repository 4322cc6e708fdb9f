"""Arrays of NumPy's: users' own; of .npz archives, which cannot fill the memory or execute code."""

import io
import zipfile
from collections.abc import Collection
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from haltwise._core.errors import InputError, require
from haltwise._core.files import most_content, read_bytes

__all__ = ["array_names", "plain_values", "read_arrays", "real_numbers", "require_unmasked"]

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


def require_unmasked(value: object, name: str, *, has_nan: bool = False) -> None:
    """Raise an `InputError` for a masked array, as what it masks would be taken for numbers.

    Args:
        value: Anything.
        name: What it is, for the message.
        has_nan: Whether NaN stands for what is missing.
    """
    way_out = (
        ".astype(float).filled(numpy.nan), as NaN is what was not measured"
        if has_nan
        else f"{name}.filled(0), and multiply by a mask of your own, an array ~{name}.mask beside "
        "it"
    )
    require(  # arrays of pandas have a mask, too, but convert what is missing to NaN
        not (isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value)),
        f"{name} is a masked array, and what it masks would count as numbers; fill it by {way_out}",
    )


def plain_values(value: Any, name: str) -> Any:
    """What NumPy makes an array of: tensors, alone or in lists, on the CPU and without their graph.

    Raises:
        InputError: An array is masked, as what it masks would be taken for numbers.
    """
    if isinstance(value, list | tuple):
        return [e if isinstance(e, float | int | str) else plain_values(e, name) for e in value]
    require_unmasked(value, name, has_nan=True)
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value  # there is no bfloat16
    return value


def real_numbers(value: Any, name: str, way_out: str = "give numbers") -> NDArray[np.float64]:
    """Real numbers as float64; flags count 0 and 1, and None is NaN.

    Args:
        value: An array, a tensor, a number or lists of them.
        name: What it is, for messages.
        way_out: What to do where it is ragged or holds something else.

    Raises:
        InputError: It cannot be an array of real numbers without loss, or some of it is masked.
    """
    plain = plain_values(value, name)
    try:
        array = np.asarray(plain)
        kinds = {array.dtype.kind}
        if array.dtype == object:
            kinds = {each.dtype.kind for each in array.flat if isinstance(each, np.generic)}
            kinds |= {"M" for each in array.flat if isinstance(each, date | timedelta)}
        require(
            "c" not in kinds,
            f"{name} must hold real numbers, got complex ones; give their size or their real part",
        )
        require(
            kinds.isdisjoint("mM"),
            f"{name} must hold real numbers, got times; give seconds, as "
            "(times - times[0]) / numpy.timedelta64(1, 's')",
        )
        # Columns of pandas with missing numbers know best how to convert themselves.
        return np.asarray(array if array.dtype.kind in "biuf" else plain, np.float64)
    except InputError:
        raise
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name} must hold real numbers ({error}); {way_out}") from None
