"""Numbers as they are written in the cells of files and tables, and what stands for none."""

import contextlib
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

__all__ = [
    "Floats",
    "is_missing",
    "is_unread_number",
    "measured",
    "parse_number",
    "parse_numbers",
    "text_in_place",
    "times_of_day",
]

Floats = npt.NDArray[np.float64]

_MISSING = frozenset(("", "-", "na", "n/a", "none", "null", "<na>", "nat"))
_WRITTEN = re.compile(r"[-+]?[$\u20ac]?\d[\d.,'\u2019\s]*%?", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", re.ASCII)
_DIVERGED = np.array(0x7FF8_0000_0000_07BA).view(np.float64)
"""A NaN that was measured. As R has its NA, a NaN with a payload of its own, which no arithmetic
makes, tells it from a missing number until `RawRuns.settled` makes the worst value of it."""


def parse_numbers(cells: Sequence[str]) -> Floats | None:
    """Numbers as they are written, NaN for what stands for a missing one; None if one is a text.

    Examples:
        >>> numbers = parse_numbers(["1", "", "2e3", "inf", "null", "nan"])
        >>> numbers.tolist(), is_missing(numbers).tolist()
        ([1.0, nan, 2000.0, inf, nan, nan], [False, True, False, False, True, False])
        >>> parse_numbers(["1e999"]) is None  # no number is so large, and this one not infinite
        True
    """
    with contextlib.suppress(ValueError):
        numbers = np.array(list(map(float, cells)))
        if not np.isinf(numbers).any():
            return measured(numbers)
    try:
        return np.array(list(map(parse_number, cells)))
    except ValueError:
        return None


def parse_number(cell: str) -> float:
    """One number as it is written; see `parse_numbers`.

    Raises:
        ValueError: It is a text, or a number beyond those that float64 holds.
    """
    written = cell.strip().lower()
    if written in _MISSING:
        return math.nan
    number = float(cell)
    if math.isinf(number) and "inf" not in written:
        raise ValueError(f"{written:.40} is too large")
    return float(_DIVERGED) if math.isnan(number) else number


def times_of_day(cells: Sequence[str]) -> Floats | None:
    """Seconds since 1970 of dates with times as ISO 8601 writes them; None if one is no such.

    What stands for a missing number is NaN. Times without a zone are those of one clock.

    Examples:
        >>> times_of_day(["1970-01-01 00:01", "1970-01-01T02:00:30,5+01:00", ""]) is None  # both
        True
        >>> times_of_day(["1970-01-01 00:01", "1970-01-01 00:01:30,5", ""]).tolist()
        [60.0, 90.5, nan]
    """
    known = [cell.strip() for cell in cells if cell.strip().lower() not in _MISSING]
    if not known or not all(map(_TIME.match, known)):
        return None
    try:
        times = [datetime.fromisoformat(cell) for cell in known]
    except ValueError:
        return None
    if len({time.tzinfo is None for time in times}) > 1:
        return None
    found = iter(time.replace(tzinfo=time.tzinfo or UTC).timestamp() for time in times)
    missing = (cell.strip().lower() in _MISSING for cell in cells)
    return np.array([math.nan if lacks else next(found) for lacks in missing])


def measured(numbers: Floats) -> Floats:
    """The same, with NaN as a value that was measured, not as a missing one."""
    nan = np.isnan(numbers)
    return np.where(nan, _DIVERGED, numbers) if nan.any() else numbers


def is_missing(numbers: Floats) -> npt.NDArray[np.bool_]:
    """Which numbers are missing; a NaN that was `measured` is not."""
    bits = np.ascontiguousarray(numbers, np.float64).view(np.int64)
    missing: npt.NDArray[np.bool_] = np.isnan(numbers) & (bits != _DIVERGED.view(np.int64))
    return missing


def is_unread_number(cell: str) -> bool:
    """Whether a text is a number as people write it.

    Examples:
        >>> [is_unread_number(cell) for cell in ("1,000", "50 %", "1'000.5", "2026-01-01", "a1")]
        [True, True, True, False, False]
    """
    return _WRITTEN.fullmatch(cell.strip()) is not None


def text_in_place(column: str, where: str, row: int, cell: str) -> str:
    """A sentence on a text that stands where a number was expected.

    Examples:
        >>> text_in_place("loss", "log.csv", 3, "oops")
        "the column 'loss' of log.csv holds the text 'oops' in row 3"
    """
    found = f"the column {column!r} of {where} holds the text {cell[:40]!r} in row {row}"
    is_number = parse_numbers([cell.replace(",", ".")]) is not None
    return f"{found} (its comma is no decimal point)" if is_number else found
