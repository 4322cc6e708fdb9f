"""JSON lines: one object a point, as many loggers and W&B's history exports have them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TextIO, final

import numpy as np

from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.files import inner_suffix, open_text, parse_json, stem
from haltwise.curves.tables import PointTable

__all__ = ["READERS", "JsonLines", "flat", "json_objects", "read_objects"]

_PORTION = 2**14  # lines read at once
_DEPTH = 8  # of objects in objects
_SUFFIXES = (".jsonl", ".ndjson")
_OTHERS = (".json", ".log", ".txt")


@final
class JsonLines(Reader):
    """One object a line; those within it are joined with dots, "eval.loss"; lists are left out."""

    is_general: ClassVar[bool] = True

    def claims(self, path: Path, head: str) -> bool:
        lines = head.lstrip().splitlines()[:2]
        is_object = bool(lines) and lines[0].startswith("{")
        whole = is_object and lines[0].rstrip().endswith("}")
        return (inner_suffix(path) in _SUFFIXES and (is_object or not lines)) or (
            inner_suffix(path) in _OTHERS and whole and lines[-1].startswith("{")
        )

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        path = paths[0]
        with open_text(path) as file:
            return read_objects(json_objects(path, file), str(path), keys, stem(path))


def read_objects(
    objects: Iterator[tuple[int, Mapping[str, Any]]], where: str, keys: Keys, name: str
) -> RawRuns:
    """The runs of a log whose points are objects.

    Args:
        objects: Where each stands, and what it holds.
        where: The file, for messages.
        keys: The columns that tell runs apart.
        name: Of the run if none does.
    """
    table, names = PointTable(Keys(), where), dict[str, None]()
    while portion := list(itertools.islice(objects, _PORTION)):
        columns: dict[str, tuple[list[int], list[Any]]] = {}
        for row, (_, entry) in enumerate(portion):
            for column, value in flat(entry):
                rows, values = columns.setdefault(column, ([], []))
                rows.append(row)
                values.append(value)
        names |= dict.fromkeys(columns)
        table.tell_apart(keys.among(names))
        for column, (rows, values) in columns.items():
            table.add_column(column, np.array(rows), [*map(str, values)])
        table.end([number for number, _ in portion])
    if not names:
        raise NothingRecordedError(
            f"{where} holds no objects of JSON with numbers or texts; lists are left out"
        )
    keys.of(names)
    return table.runs(name, is_log=True)


def json_objects(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file; a last line that is cut off is left out."""
    error: InputError | None = None
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        if error is not None:
            raise error
        where = f"line {number} of {path}"
        try:
            found = parse_json(line, where)
        except InputError as wrong:
            error = wrong
            continue
        require(isinstance(found, dict), f"{where} is no object of JSON; write one a line")
        yield number, found
    if error is not None:
        if line.endswith("\n"):
            raise error
        warn(f"{path} ends in the middle of a line, which is left out", DataWarning)


def flat(entry: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The numbers and texts in an object, with the names that lead to them joined by dots.

    Examples:
        >>> list(flat({"step": 1, "eval": {"loss": 0.5, "all": [1, 2]}, "lr": None}))
        [('step', 1), ('eval.loss', 0.5)]
    """
    for key, value in entry.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            if depth < _DEPTH:
                yield from flat(value, f"{name}.", depth + 1)
        elif isinstance(value, bool):
            yield name, int(value)
        elif isinstance(value, int | float | str):
            yield name, value


READERS = {"jsonl": JsonLines()}
