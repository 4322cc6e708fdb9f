"""Tables of points whose rows belong to runs: of files read by portions, and of data frames."""

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from haltwise._core.arrays import plain_values
from haltwise._core.errors import DataWarning, InputError, refusing_others, require, warn
from haltwise.curves.cells import (
    is_missing,
    is_unread_number,
    parse_number,
    parse_numbers,
    text_in_place,
    times_of_day,
)
from haltwise.curves.raw import MOST_CELLS, Keys, NothingRecordedError, RawRuns

__all__ = ["MOST_COLUMNS", "PointTable", "frame_columns", "frame_runs"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Sparse = tuple[Integers | slice, Floats]  # rows and what stands in them

MOST_COLUMNS = 10_000
"""Columns that a table may have."""

_MOST_TICKS = 9.22e18  # that 64 bits hold


@final
class PointTable:
    """Rows that belong to runs, filled portion by portion; columns that are empty take no room.

    Args:
        keys: The columns that tell runs apart.
        where: The file, for messages.
    """

    def __init__(self, keys: Keys, where: str) -> None:
        self._keys, self._where = keys, where
        self._num_rows = 0
        self._places: list[Sequence[int]] = []  # of the rows in the file
        self._numbers: dict[str, list[Sparse]] = {}
        self._codes: dict[str, list[tuple[Integers, Integers]]] = {}
        self._texts: dict[str, dict[str, int]] = {}
        self._were_numbers: set[str] = set()

    def tell_apart(self, keys: Keys) -> None:
        """Add keys that columns to come have for the first time."""
        self._keys = Keys(*(old or new for old, new in zip(self._keys, keys, strict=True)))

    def add(self, columns: Mapping[str, Sequence[str]], places: Sequence[int]) -> None:
        """Add rows, given by columns as they are written, and where they stand in the file."""
        every = np.arange(len(places))
        for name, cells in columns.items():
            self.add_column(name, every, cells)
        self.end(places)

    def add_column(self, name: str, rows: Integers, cells: Sequence[str]) -> None:
        """Add what one column holds in some of the rows to come; `end` says how many those are."""
        numbers = None if name in self._keys or name in self._texts else parse_numbers(cells)
        if numbers is not None:
            self.add_numbers(name, rows, numbers)
        else:
            self._add_texts(name, rows, cells)

    def add_numbers(self, name: str, rows: Integers, numbers: Floats) -> None:
        """Add the numbers of one column in some of the rows to come."""
        known = ~is_missing(numbers)
        entry = self._numbers.setdefault(name, [])
        first, num = self._num_rows, len(numbers)
        # One object of JSON may name a column twice, as "a.b" and as "b" in "a".
        if num and known.all() and (np.diff(rows) == 1).all():
            entry.append((slice(first + int(rows[0]), first + int(rows[0]) + num), numbers))
        elif known.any():
            entry.append((rows[known] + first, numbers[known]))

    def _add_texts(self, name: str, rows: Integers, cells: Sequence[str]) -> None:
        if name in self._numbers:
            if any(len(values) for _, values in self._numbers[name]):
                self._were_numbers.add(name)
            del self._numbers[name]
        seen = self._texts.setdefault(name, {})
        own: dict[str, int] = dict.fromkeys(cells, -1)  # most are written many times
        for cell in own:
            label = cell
            if name in self._keys:  # blanks around a name make no other run
                label = "" if _is_lacking(cell) else cell.strip()
            own[cell] = seen.setdefault(label, len(seen))
        codes = np.array([*map(own.__getitem__, cells)], np.int64)
        self._codes.setdefault(name, []).append((rows + self._num_rows, codes))

    def end(self, places: Sequence[int]) -> None:
        """Close a portion of rows that stand at these places of the file, such as line numbers."""
        self._num_rows += len(places)
        self._places.append(places)
        require(
            len(self._numbers) + len(self._texts) <= MOST_COLUMNS,
            f"{self._where} has more than {MOST_COLUMNS} columns: too many",
        )

    def runs(self, name: str, **settings: Any) -> RawRuns:
        """The runs, in the order in which they appear.

        Args:
            name: Of the run if no column tells runs apart.
            **settings: Those of `RawRuns`.

        Raises:
            NothingRecordedError: There are no rows.
            InputError: There are too many columns for so many rows.

        Warns:
            DataWarning: Rows lack what tells runs apart, while others have it.
        """
        num = self._num_rows
        if num == 0:
            raise NothingRecordedError(f"{self._where} holds no rows")
        filled = sum(len(part) for parts in self._numbers.values() for _, part in parts)
        require(
            num * len(self._numbers) <= max(MOST_CELLS, 2 * filled),
            f"{self._where} has {num} rows and {len(self._numbers)} columns of numbers, nearly all "
            "of them empty: they would not fit into the memory; keep fewer columns",
        )
        texts = {column: self._dense_codes(column) for column in self._codes}
        told = [column for column in self._keys if column in texts]
        for column in told:
            self._warn_of_lacking(column, texts[column])
        run = np.zeros(num, np.int64)
        for column in told:
            run = np.unique(
                run * (len(self._texts[column]) + 2) + texts[column], return_inverse=True
            )[1]
        in_order = bool((run[1:] >= run[:-1]).all())
        order = np.arange(num) if in_order else np.argsort(run, kind="stable")
        starts = np.flatnonzero(np.diff(run[order], prepend=-1))
        appearance = np.argsort(order[starts])
        bounds = np.append(starts, num)
        numbers = {column: self._dense(column) for column in list(self._numbers)}
        if not in_order:
            numbers = {column: values[order] for column, values in numbers.items()}
        slices = [slice(bounds[place], bounds[place + 1]) for place in appearance]
        numbers |= self._times({c: texts[c][order] for c in texts if c not in told}, starts)
        texts = {column: codes for column, codes in texts.items() if column not in numbers}
        labels: list[dict[str, str]] = [{} for _ in slices]
        changing: list[dict[str, Integers]] = [{} for _ in slices]
        sentences, mixed, unread = {}, set(), set()
        for column, codes in texts.items():
            kinds = self._kinds(column)[codes]
            bad = np.flatnonzero(kinds == _TEXT)
            if column not in told and len(bad):
                among_numbers = order[_among_numbers(kinds[order], starts)]
                first = int(min(among_numbers, default=bad[0]))
                sentences[column] = self._sentence(column, first)
                if is_unread_number([*self._texts[column]][codes[first]]):
                    unread.add(column)
                mixed |= {column} if len(among_numbers) else set()
            sorted_codes = codes[order]
            least = np.minimum.reduceat(sorted_codes, starts)[appearance]
            most = np.maximum.reduceat(sorted_codes, starts)[appearance]
            names = [*self._texts[column]]
            for label, low, high in zip(labels, least, most, strict=True):
                if low == high and low >= 0:
                    label[column] = names[low]
            for run_codes, part, low, high in zip(changing, slices, least, most, strict=True):
                if low < high:
                    run_codes[column] = sorted_codes[part]
        for label in labels:
            label["run"] = "/".join(label[c] for c in told[::-1] if label.get(c)) or name
        runs = [{c: values[part] for c, values in numbers.items()} for part in slices]
        own: dict[str, Any] = {
            "group": self._keys.group,
            "task": self._keys.task,
            "is_told_apart": bool(told),
            "texts": sentences,
            "mixed": frozenset(mixed),
            "unread": frozenset(unread),
            "changing": changing,
        }
        return RawRuns(runs, labels, **{**own, **settings})

    def _times(self, codes: Mapping[str, Integers], starts: Integers) -> dict[str, Floats]:
        """In seconds, columns of times that change within a run; else a time is a label of it."""
        found = {}
        for column, each in codes.items():
            changes = np.flatnonzero(np.diff(each)) + 1
            seconds = times_of_day([*self._texts[column]])
            if seconds is not None and len(np.setdiff1d(changes, starts)):
                found[column] = np.append(seconds, np.nan)[each]
        return found

    def _warn_of_lacking(self, column: str, codes: Integers) -> None:
        names = np.array([*map(_is_lacking, self._texts[column]), True])
        lacking = int(names[codes].sum())
        if 0 < lacking < len(codes):
            warn(
                f"{lacking} of {len(codes)} rows of {self._where} have no {column!r}: they count "
                "as of one that has no name; fill it in where that is wrong",
                DataWarning,
            )

    def _kinds(self, name: str) -> Integers:
        """What each code of a column stands for; the last, -1, for what has none."""
        uncoded = _NUMBER if name in self._were_numbers else _NEITHER
        return np.array([*map(_kind, self._texts[name]), uncoded])

    def _sentence(self, name: str, row: int) -> str:
        code = self._dense_codes(name)[row]
        first = 0
        for places in self._places:
            if row < first + len(places):
                break
            first += len(places)
        text = [*self._texts[name]][code]
        return text_in_place(name, self._where, places[row - first], text)

    def _dense(self, name: str) -> Floats:
        values = np.full(self._num_rows, np.nan)
        for rows, part in self._numbers.pop(name):
            values[rows] = part
        return values

    def _dense_codes(self, name: str) -> Integers:
        codes = np.full(self._num_rows, -1, np.int64)
        for rows, part in self._codes[name]:
            codes[rows] = part
        return codes


_NEITHER, _NUMBER, _TEXT = range(3)  # in a cell


def _is_lacking(cell: str) -> bool:
    return cell.strip().lower() in ("", "nan", "<na>", "nat")  # "none" may be a group


def _kind(cell: str) -> int:
    try:
        return _NEITHER if math.isnan(parse_number(cell)) else _NUMBER
    except ValueError:
        return _TEXT


def _among_numbers(kinds: Integers, starts: Integers) -> Integers:
    """The texts in a column, sorted by run, of runs that have numbers in it, too.

    A text that is the same throughout a run is a label, whatever others have there.
    """
    sizes = np.diff(starts, append=len(kinds))
    has_numbers = np.repeat(np.logical_or.reduceat(kinds == _NUMBER, starts), sizes)
    return np.flatnonzero(has_numbers & (kinds == _TEXT))


def frame_runs(frame: Any, keys: Keys) -> RawRuns:
    """The runs in a data frame of pandas, polars or pyarrow, or in columns by name.

    Raises:
        InputError: It has no columns, or they are not vectors of one length.
    """
    columns = frame_columns(frame)
    keys = keys.of(columns)
    table = PointTable(keys, "the data frame")
    every = np.arange(len(next(iter(columns.values()))))
    for name, values in columns.items():
        if values.dtype.kind in "mM":  # durations and times of day
            table.add_numbers(name, every, _seconds(values))
        elif values.dtype.kind in "fiub" and name not in keys:
            table.add_numbers(name, every, values.astype(np.float64))
        else:
            with refusing_others(f"column {name!r} holds no numbers, nor what can be written out"):
                cells = [*map(_cell, values.tolist())]
            table.add_column(name, every, cells)
    table.end(range(len(every)))
    return table.runs("the data frame", is_log=False)


def _seconds(times: npt.NDArray[Any]) -> Floats:
    """Durations, or times of day since 1970, in seconds; NaN where there is none."""
    kind, missing = times.dtype.kind, np.isnat(times)
    whole = times.astype(f"{kind}8[s]").astype(np.float64)
    longest = np.abs(whole[~missing]).max(initial=0)
    # In the finest unit that 64 bits hold: nanoseconds until 2262.
    units = ((unit, 1e3**power) for power, unit in ((3, "ns"), (2, "us"), (1, "ms")))
    unit, per_second = next((u for u in units if longest * u[1] < _MOST_TICKS), ("s", 1.0))
    seconds = times.astype(f"{kind}8[{unit}]").astype(np.float64) / per_second
    return np.where(missing, np.nan, seconds)


def _cell(value: Any) -> str:
    """An entry of a column of objects as a file would hold it, empty where it is missing."""
    same = value == value  # noqa: PLR0124 - NaN differs from itself, and pandas.NA does not say
    if value is None or not isinstance(same, bool | np.bool_) or not same:
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    return repr(value.timestamp()) if isinstance(value, datetime.datetime) else str(value)


def _array(column: Any, name: str) -> npt.NDArray[Any]:
    column = plain_values(column, name)
    try:
        return np.asarray(column.to_numpy() if hasattr(column, "to_numpy") else column)
    except ValueError as error:
        raise InputError(f"a column of the data frame is no vector ({error})") from None


def frame_columns(frame: Any) -> dict[str, npt.NDArray[Any]]:
    """The columns of a data frame, or of a dictionary by name, as arrays of one length.

    The named levels of an index of pandas are columns, too; those of columns are joined by dots.

    Raises:
        InputError: It has no columns, or they are not vectors of one length.
    """
    names = getattr(frame, "column_names", None) or getattr(frame, "columns", None)
    if names is None and isinstance(frame, Mapping):
        names = frame.keys()
    if names is None:
        raise InputError(
            f"a data frame or columns by name were expected, got {type(frame).__name__}"
        )
    given = [(name, frame[name]) for name in names]
    # Of pandas, whose levels are columns if they have names.
    index: Any = getattr(frame, "index", None)
    levels = [level for level in getattr(index, "names", ()) if level is not None]
    own = [(level, index.get_level_values(level)) for level in levels if level not in names]
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, column in own + given:
        label = ".".join(filter(None, map(str, name))) if isinstance(name, tuple) else str(name)
        require(
            label not in columns,
            f"the data frame has two columns {label!r}; rename one",
        )
        columns[label] = _array(column, f"column {label!r}")
    shapes = {values.shape for values in columns.values()}
    require(
        len(shapes) == 1 and len(next(iter(shapes))) == 1,
        "the columns of a data frame must be vectors of one length, got "
        + (", ".join(f"{name} {list(v.shape)}" for name, v in columns.items()) or "none"),
    )
    return columns
