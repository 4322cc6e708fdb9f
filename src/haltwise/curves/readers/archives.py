"""What the archives of arrays (.npz) have in common."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from haltwise._core.arrays import array_names, read_arrays, real_numbers
from haltwise._core.errors import InputError
from haltwise.curves.cells import measured
from haltwise.curves.raw import Keys, RawRuns
from haltwise.curves.readers.base import Reader

__all__ = ["Archive", "Arrays", "evaluated", "ragged", "texts"]

Arrays = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]


class Archive(Reader):
    """A format that is told by the names of its arrays."""

    needed: ClassVar[frozenset[str]]
    """Arrays that it cannot do without, by which it is recognised."""

    def claims(self, path: Path, head: str) -> bool:
        return head.startswith("PK") and self.needed <= set(array_names(path))

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        arrays = read_arrays(paths[0])
        try:
            with np.errstate(all="ignore"):  # casts of hostile numbers
                return self.runs(arrays)
        except InputError as error:
            raise InputError(f"{paths[0]}: {error}") from None
        except (KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{paths[0]} has the arrays of this format, but not as they must be "
                f"({type(error).__name__}: {error}); build it again"
            ) from None

    @abstractmethod
    def runs(self, arrays: Arrays) -> RawRuns:
        """The runs in the arrays; any exception says that they are not as they must be."""


def ragged(
    values: npt.NDArray[Any], offset: npt.NDArray[Any], columns: Sequence[str]
) -> list[dict[str, Floats]]:
    """The columns of each run, from values [P, C] of which run i has offset[i]:offset[i+1].

    Raises:
        ValueError: The arrays do not fit.
    """
    if values.ndim != 2 or values.shape[1] != len(columns) or len(set(columns)) != len(columns):
        raise ValueError(f"values {list(values.shape)} have the columns {', '.join(columns)}")
    if offset.ndim != 1 or len(offset) < 1 or offset.dtype.kind not in "iu":
        raise ValueError("offset is no vector of integers")
    bounds = offset.astype(np.int64)
    if bounds[0] != 0 or bounds[-1] != len(values) or (np.diff(bounds) < 0).any():
        raise ValueError(f"offset does not rise from 0 to {len(values)}")
    by_column = dict(zip(columns, real_numbers(values, "values").T.copy(), strict=True))
    return [
        {name: column[first:last] for name, column in by_column.items()}
        for first, last in pairwise(bounds)
    ]


def evaluated(values: Floats) -> Floats:
    """A column of one run that is evaluated at every point, or at none.

    NaN is then what a run evaluates to that has diverged, not a number that is missing.

    Args:
        values: Of the points of a run, shape [n].
    """
    return values if np.isnan(values).all() else measured(values)


def texts(array: npt.NDArray[Any], num: int) -> list[str]:
    """A text for each of `num` runs.

    Raises:
        ValueError: There are not that many.
    """
    if array.shape != (num,):
        raise ValueError(f"an array has shape {list(array.shape)}, not [{num}]")
    return [str(entry) for entry in array]
