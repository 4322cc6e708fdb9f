"""Tables with a column of groups as padded batches, one problem for each group."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, SupportsFloat, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.settings import shown
from haltwise._core.tensors import floating_dtype
from haltwise.curves.cells import parse_numbers, text_in_place
from haltwise.curves.readers.csv import opened_table
from haltwise.curves.tables import frame_columns

__all__ = ["Groups", "from_groups"]

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Name = str | int
"""Of a column; that of a frame may be a number."""

MASK = "mask"
_HIGHEST = sys.float_info.max
_PADDING, _SMALL = 20, 2**22  # padded rows for each that there is, and rows that are always fine


@final
@dataclass(frozen=True, eq=False, repr=False)
class Groups:
    """The rows of B groups side by side, padded to the N rows of the longest.

    A shorter group is padded by its own last row, so that no loss becomes infinite or NaN there;
    the mask tells such rows from its own. Whatever is summed over rows is to be multiplied by it.

    Attributes:
        keys: What each group is called, in the order of their first rows; a tuple for each where
            several columns tell groups apart. Of a file, integers where a column holds nothing
            else, and else the texts as they are written.
        data: Columns by name, each [B, N], or [B, N, C] where C of them were put together; and
            `mask`, bool [B, N], true where a row is the group's own. It is the `data` of a
            `haltwise.FunctionBatch`.
        counts: Rows of each group, int64 [B].
        by: The columns of the table that tell groups apart.
        columns: The columns of the table that each entry of `data` is made of.
    """

    keys: list[Any]
    data: dict[str, Tensor]
    counts: Tensor
    by: tuple[str, ...] = ()
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        low, high = int(self.counts.min()), int(self.counts.max())
        return (
            f"Groups({len(self):,} of {low:,} to {high:,} rows, {int(self.counts.sum()):,} in all: "
            + ", ".join(f"{name} {list(value.shape)}" for name, value in self.data.items())
            + ")"
        )


def from_groups(
    table: Any,
    by: Name | Sequence[Name],
    columns: Sequence[Name] | Mapping[str, Name | Sequence[Name]] | None = None,
    *,
    dtype: Any = torch.float64,
    drop_missing: bool = False,
) -> Groups:
    """Put the rows of a table side by side by group, for one problem each.

    Rows of a group need not stand together; within it they keep their order. What tells groups
    apart in a CSV file is taken as integers where all of a column are written so (`36`, or `36.0`
    throughout), as pandas reads them; otherwise as it is written, so that `007` stays what it is.

    Args:
        table: A data frame of pandas, polars or pyarrow, a dictionary of arrays of one length, or
            the path of a CSV file with a header (`.gz` and `.xz` are decompressed).
        by: The column that tells groups apart, or several; by name, or by number where a frame
            calls its columns by numbers.
        columns: Those to take: names, or new names with one column or several for each, which are
            put together as [B, N, C]. All but `by` if None.
        dtype: Of all numbers: `torch.float64`, which holds any column of a table exactly, or
            `torch.float32`; NumPy's stand for them.
        drop_missing: Whether to leave out rows that lack their group or a number that is taken,
            and so groups without any other row. They are refused otherwise.

    Raises:
        InputError: A column is missing, holds texts, missing values or infinities, or groups
            differ so much in length that padding would fill the memory.

    Examples:
        >>> table = {"shop": ["a", "b", "a", "a"], "price": [1, 2, 3, 4], "sold": [9, 7, 5, 3]}
        >>> groups = from_groups(table, by="shop", columns={"x": ["price"], "y": "sold"})
        >>> groups
        Groups(2 of 1 to 3 rows, 4 in all: x [2, 3, 1], y [2, 3], mask [2, 3])
        >>> groups.keys, groups.data["y"].tolist(), groups.data["mask"].sum(1).tolist()
        (['a', 'b'], [[9.0, 5.0, 3.0], [7.0, 7.0, 7.0]], [3, 1])
        >>> groups.by, groups.columns
        (('shop',), {'x': ('price',), 'y': ('sold',)})
    """
    dtype = floating_dtype(dtype)
    told_by = _names(by, "by must be the name of a column, or a list of them")
    require(len(told_by) > 0, "by must name at least one column")
    wanted = _wanted(columns)
    needed = None if wanted is None else {*told_by, *(name for _, some in wanted for name in some)}
    where = str(table) if isinstance(table, str | Path) else "the table"
    if isinstance(table, str | Path):
        found = _read(Path(table), told_by, needed)
    else:
        found = frame_columns(table)
    if wanted is None:
        wanted = [(name, [name]) for name in found if name not in told_by]
    for name in (*told_by, *(name for _, some in wanted for name in some)):
        require(
            name in found,
            f"{where} has no column {name!r}; it has {', '.join(map(repr, list(found)[:30]))}",
        )
    require(
        all(name != MASK for name, _ in wanted),
        f"a column is called {MASK!r}, as what tells padding from rows will be; give it another "
        "name by columns={...}",
    )
    labels = [found[name] for name in told_by]
    numbers = {one: _numbers(found[one], one, where) for _, some in wanted for one in some}
    if drop_missing:
        lacking = [[_is_missing(label) for label in column.tolist()] for column in labels]
        whole_rows = ~np.array([*lacking, *map(np.isnan, numbers.values())]).any(0)
        labels = [column[whole_rows] for column in labels]
        numbers = {name: values[whole_rows] for name, values in numbers.items()}
    codes, keys = _coded(labels, told_by, where)
    if isinstance(table, str | Path):
        keys = _as_written(keys)
    for name, values in numbers.items():
        is_missing = ~np.isfinite(values)
        what = "missing or infinite" if is_missing.any() else f"beyond the range of {dtype}"
        bad = np.flatnonzero(~torch.from_numpy(values).to(dtype).isfinite().numpy())
        require(
            len(bad) == 0,
            f"column {name!r} of {where} is {what} in {len(bad)} rows, the first of "
            f"them in group {keys[codes[bad[0]]] if len(bad) else None!r}; fill it in, or leave "
            "rows with missing numbers out by drop_missing=True",
        )
    rows, mask, counts = _padded_rows(codes, keys)
    data = {}
    for name, some in wanted:
        parts = [torch.from_numpy(numbers[one][rows]) for one in some]
        is_one = not isinstance(columns, Mapping) or _is_name(columns[name])
        whole = parts[0] if is_one else torch.stack(parts, -1)
        data[name] = whole.to(dtype)
    return Groups(
        keys,
        {**data, MASK: torch.from_numpy(mask)},
        torch.from_numpy(counts),
        tuple(told_by),
        {name: tuple(some) for name, some in wanted},
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str | Integral)


def _names(value: object, expected: str) -> list[str]:
    """One name of a column or several, as texts."""
    names = [value] if _is_name(value) else value
    fine = isinstance(names, Sequence | np.ndarray) and all(map(_is_name, names))
    require(fine, f"{expected}, got {shown(value)}")
    assert isinstance(names, Sequence | np.ndarray)
    return [str(name) for name in names]


def _wanted(
    columns: Sequence[Name] | Mapping[str, Name | Sequence[Name]] | None,
) -> list[tuple[str, list[str]]] | None:
    """New names, and the columns that each is made of."""
    if columns is None:
        return None
    require(
        not _is_name(columns) and len(columns) > 0,
        f"columns must be names, or a dictionary of new names, got {shown(columns)}",
    )
    expected = "a column must be named, by its name or a list of names"
    if not isinstance(columns, Mapping):
        return [(name, [name]) for name in _names(columns, expected)]
    wanted = [(name, _names(some, expected)) for name, some in columns.items()]
    for name, some in wanted:
        require(len(some) > 0, f"columns names none for {name!r}; name at least one, or drop it")
    return wanted


def _read(path: Path, told_by: list[str], needed: set[str] | None) -> dict[str, Array]:
    """The columns of a CSV file: numbers, but as they are written where they tell groups apart."""
    parts: dict[str, list[Array]] = {}
    num_rows = 0
    with opened_table(path) as (header, portions):
        for places, columns in portions:
            for name, cells in zip(header, columns, strict=True):
                if not name or (needed is not None and name not in needed):
                    continue
                if name in told_by:
                    part: Array = np.array([cell.strip() for cell in cells], dtype=object)
                else:
                    numbers = parse_numbers(cells)
                    if numbers is None:
                        bad = next(n for n, c in enumerate(cells) if parse_numbers([c]) is None)
                        raise _text(name, str(path), places[bad], cells[bad])
                    part = numbers
                parts.setdefault(name, []).append(part)
            num_rows += len(places)
    require(num_rows > 0, f"{path} has a header and no rows")
    return {name: np.concatenate(part) for name, part in parts.items()}


def _text(name: str, where: str, row: int, cell: str) -> InputError:
    return InputError(
        f"{text_in_place(name, where, row, cell)}; mend or encode it, name the columns to take by "
        "columns=[...], or give a frame, such as pandas.read_csv(..., decimal=',')"
    )


def _coded(columns: list[Array], told_by: list[str], where: str) -> tuple[Integers, list[Any]]:
    """Which group each row belongs to, counted in the order of first rows, and their names."""
    parts = [
        (column.astype(str) if column.dtype.kind in "mM" else column).tolist() for column in columns
    ]
    values = parts[0] if len(parts) == 1 else zip(*parts, strict=True)
    seen: dict[Any, int] = {}
    codes = np.fromiter((seen.setdefault(key, len(seen)) for key in values), np.int64)
    require(len(codes) > 0, f"{where} has no rows")
    for key, code in seen.items():
        for name, part in zip(told_by, key if len(columns) > 1 else (key,), strict=True):
            if _is_missing(part):
                rows = np.flatnonzero(codes == code)
                raise InputError(
                    f"{where} has no {name!r} in {len(rows)} rows, the first of them number "
                    f"{rows[0]}; fill it in or drop them"
                )
    return codes, list(seen)


_WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,18})(\.0)?")


def _as_written(keys: list[Any]) -> list[Any]:
    """Keys of a file, with integers for each column that holds nothing else.

    Only where that can be undone: no text with a leading zero, and no two texts of one number.
    """
    columns = [*zip(*keys, strict=True)] if isinstance(keys[0], tuple) else [tuple(keys)]
    converted: list[Sequence[Any]] = []
    for texts in columns:
        found = [_WHOLE.fullmatch(text) for text in texts]
        known = [match for match in found if match is not None]
        alike = len({match[2] for match in known}) == 1 and len(known) == len(texts)
        numbers = [int(match[1]) for match in known]
        fit = alike and all(-(2**63) <= number < 2**63 for number in numbers)
        converted.append(numbers if fit else texts)
    return [*zip(*converted, strict=True)] if isinstance(keys[0], tuple) else list(converted[0])


def _is_missing(key: object) -> bool:
    is_nan = isinstance(key, float) and math.isnan(key)
    # pandas has values of its own for it, and dates that are unknown are written so.
    return (
        is_nan or key is None or key in ("", "NaT") or type(key).__name__ in ("NAType", "NaTType")
    )


def _is_too_large(cell: object) -> bool:
    try:
        if isinstance(cell, SupportsFloat):
            float(cell)
    except OverflowError:
        return True
    return False


def _padded_rows(codes: Integers, keys: list[Any]) -> tuple[Integers, Array, Integers]:
    """Row numbers [B, N], the last of a group repeated; which are not repeated; rows [B]."""
    counts = np.bincount(codes)
    longest, number = int(counts.max()), len(codes)
    padded = longest * len(counts)
    require(
        padded <= max(_SMALL, _PADDING * number),
        f"group {keys[int(counts.argmax())]!r} has {longest:,} rows, half of the groups at most "
        f"{int(np.median(counts)):,}: {len(counts):,} groups padded to the longest are "
        f"{padded:,} rows for {number:,}; solve the few long groups in a call of their own",
    )
    order = np.argsort(codes, kind="stable")
    first = np.cumsum(counts) - counts
    place = np.arange(longest)
    mask = place < counts[:, None]
    return order[first[:, None] + np.minimum(place, counts[:, None] - 1)], mask, counts


def _numbers(values: Array, name: str, where: str) -> Array:
    """A column in float64; float32 where it is."""
    if values.dtype.kind in "OUST":  # numbers with missing ones among them, or texts, come so
        cells = values.tolist()
        try:
            values = np.array([np.nan if _is_missing(cell) else cell for cell in cells], float)
        except OverflowError:  # an integer or a fraction
            row = next(row for row, cell in enumerate(cells) if _is_too_large(cell))
            raise InputError(
                f"column {name!r} of {where} holds {shown(cells[row])} in row {row}, which is "
                f"beyond {_HIGHEST:.4g}, the largest number in float64; mend it or leave the row "
                "out"
            ) from None
        except (TypeError, ValueError):
            pass
        for row, cell in enumerate(cells if values.dtype.kind in "OUST" else ()):
            if isinstance(cell, str) and parse_numbers([cell]) is None:
                raise _text(name, where, row, cell)
    require(
        values.dtype.kind in "fiub",
        f"column {name!r} of {where} holds no numbers ({values.dtype}); name the columns to take "
        "by columns=[...], or encode it",
    )
    return values if values.dtype == np.float32 else values.astype(np.float64)
