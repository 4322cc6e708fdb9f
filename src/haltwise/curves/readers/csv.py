"""Comma-separated values: all runs in one file, or one run a file."""

import contextlib
import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, final

from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise.curves.cells import parse_numbers
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.files import inner_suffix, open_text, stem
from haltwise.curves.tables import MOST_COLUMNS, PointTable

__all__ = ["READERS", "Csv", "header_of", "is_csv", "opened_table", "read_table"]

_PORTION = 2**18  # cells read at once
_BLOCK = 2**10  # rows turned into columns at once: Python looks through all lists that there are
_DELIMITERS = ",;\t"


def is_csv(path: Path) -> bool:
    """Whether the name of a file is that of comma-separated values."""
    return inner_suffix(path) in (".csv", ".tsv")


def header_of(head: str, *, whole: bool = False) -> list[str]:
    """The names of the columns, in the first line of a file, or in all that is given."""
    line = (head if whole else head.partition("\n")[0]).rstrip("\r\n")
    lines = line.splitlines(keepends=True)
    try:
        return [name.strip() for name in next(csv.reader(lines, delimiter=_delimiter(line)), [])]
    except csv.Error:
        return []


def _delimiter(line: str) -> str:
    return max(_DELIMITERS, key=line.count)


def read_table(path: Path, keys: Keys | None, *, is_log: bool, name: str | None = None) -> RawRuns:
    """The runs of a table with a header and one row a point.

    Args:
        path: The file; separated by commas, semicolons or tabs.
        keys: The columns that tell runs apart; all rows are one run if None.
        is_log: Whether the rows stand in the order of time.
        name: Of the run if no column tells it.

    Raises:
        InputError: It is no such table.

    Warns:
        DataWarning: The last line is cut off, or a column mixes texts and numbers.
    """
    with opened_table(path) as (header, portions):
        table = PointTable(Keys() if keys is None else keys.of(filter(None, header)), str(path))
        for places, columns in portions:
            named = zip(header, columns, strict=True)
            table.add({name: cells for name, cells in named if name}, places)
    found = table.runs(name or stem(path), is_log=is_log)
    require(
        len(header) > 1 or any(found.runs),
        f"{path} has one column, {header[0][:60]!r}, and no numbers in it; separate columns by "
        "commas, semicolons or tabs",
    )
    return found


Portion = tuple[Sequence[int], list[list[str]]]
"""Rows by columns, and their numbers in the file, in which the header is row 1."""


@contextlib.contextmanager
def opened_table(path: Path) -> Iterator[tuple[list[str], Iterator[Portion]]]:
    """Open a table with a header: the names of its columns, and its rows, many at a time.

    Raises:
        InputError: It is no such table.

    Warns:
        DataWarning: The last line is cut off.
    """
    with open_text(path) as file:
        first = file.readline(2**22)
        while first.count('"') % 2 and (more := file.readline(2**22)):
            first += more  # a name in quotes goes on in the next line
        if not first:
            raise NothingRecordedError(f"{path} is empty")
        require(
            "\0" not in first,
            f"{path} holds NUL characters, as text in UTF-16 does; convert it, for instance by "
            f"iconv -f UTF-16 -t UTF-8 {path}",
        )
        header = header_of(first, whole=True)
        require(
            any(header) and parse_numbers([name or "?" for name in header]) is None,
            f"{path} does not begin with a line that names its columns; add one",
        )
        require(
            len(header) <= MOST_COLUMNS, f"{path} has more than {MOST_COLUMNS} columns: too many"
        )
        twice = [name for name in header if name and header.count(name) > 1]
        require(not twice, f"{path} has two columns {', '.join(map(repr, twice[:1]))}; rename one")
        reader = csv.reader(file, delimiter=_delimiter(first))
        yield header, _portions(path, reader, len(header))


def _portions(path: Path, rows: Iterator[list[str]], width: int) -> Iterator[Portion]:
    """Rows of the right width, many at a time; only the last may be cut off."""
    number, most = 1, max(1, _PORTION // width)
    cut: str | None = None
    places: list[int] = []
    columns: list[list[str]] = [[] for _ in range(width)]
    try:
        while block := list(itertools.islice(rows, min(_BLOCK, most))):
            numbers: Sequence[int] = range(number + 1, number + 1 + len(block))
            number += len(block)
            if cut or set(map(len, block)) != {width}:
                cut, numbers, block = _whole(path, numbers, block, width, cut)
            places += numbers
            for column, cells in zip(columns, zip(*block, strict=True), strict=bool(block)):
                column.extend(cells)
            if len(places) >= most:
                yield _as_range(places), columns
                places, columns = [], [[] for _ in range(width)]
    except csv.Error as error:
        raise InputError(f"{path} is no table of values after row {number} ({error})") from None
    if places:
        yield _as_range(places), columns
    if cut:
        warn(f"{path} ends in the middle of a row, which is left out", DataWarning)


def _whole(
    path: Path, numbers: Sequence[int], rows: list[list[str]], width: int, cut: str | None
) -> tuple[str | None, list[int], list[list[str]]]:
    """The rows that are whole, their numbers, and what is wrong with one that is cut off."""
    whole = []
    for number, row in zip(numbers, rows, strict=True):
        if not row:
            continue
        wrong = f"{path} has {len(row)} cells in row {number}, but {width} columns"
        what = "that row, or the first, which names the columns" if number == 2 else "that row"
        require(cut is None and len(row) <= width, f"{cut or wrong}; mend {what}")
        if len(row) < width:
            cut = wrong
        else:
            whole.append((number, row))
    return cut, [number for number, _ in whole], [row for _, row in whole]


def _as_range(places: list[int]) -> Sequence[int]:
    is_range = places[-1] - places[0] == len(places) - 1
    return range(places[0], places[-1] + 1) if is_range else places


@final
class Csv(Reader):
    """A table with one row a point; columns run, group and task tell runs apart."""

    is_general: ClassVar[bool] = True

    def claims(self, path: Path, head: str) -> bool:
        return is_csv(path)

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        return read_table(paths[0], keys, is_log=False)


READERS = {"csv": Csv()}
