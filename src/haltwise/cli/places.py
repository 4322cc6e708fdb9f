"""Files that commands read and write; no command writes over what it reads, or twice to a file."""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from fnmatch import fnmatch
from functools import wraps
from itertools import combinations, islice
from pathlib import Path
from typing import Any, final

import click

from haltwise._core.errors import require
from haltwise.curves.readers.files import files_below
from haltwise.datasets.store import default_directory

__all__ = ["DIRECTORY", "JSON", "PAGE", "PATH", "PathType", "kept_apart"]

_MOST_FILES = 100_000  # of a folder that are looked at


@final
class PathType(click.Path):
    """A path; an empty text, as of a variable of the shell that is not set, is none.

    Args:
        begin: How a file begins that is written there at the end, in a directory that is made then
            if it is missing; whether that can be is seen before the work.
        is_directory: Whether files are written in it.
        files: Patterns of what is written in it, files or folders.
        is_new: Whether that must be no directory that is read.
    """

    def __init__(
        self,
        *,
        begin: bytes = b"",
        is_directory: bool = False,
        files: Sequence[str] = (),
        is_new: bool = False,
    ) -> None:
        super().__init__(path_type=Path)
        self.begin, self.is_directory, self._files = begin, is_directory, files
        self.is_new = is_new

    @property
    def writes(self) -> bool:
        """Whether a command writes there."""
        return self.is_directory or self.begin != b""

    def has(self, path: Path, directory: Path) -> bool:
        """Whether a file is one that is written in the directory."""
        place, top = path.resolve(), directory.resolve()
        return place.is_relative_to(top) and any(
            fnmatch(part, each) for part in place.relative_to(top).parts[:1] for each in self._files
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty; name a file or a directory, or leave it out", param, ctx)
        path: Any = super().convert(value, param, ctx)
        if self.begin and path.is_dir():
            self.fail(f"{path} is a directory; name a file in it", param, ctx)
        if self.begin and path.suffix == ".safetensors":
            self.fail(f"{path} is the name of weights; give it another ending", param, ctx)
        if self.writes:
            place = path.absolute() / "file" if self.is_directory else path.absolute()
            there = next(each for each in place.parents if os.access(each, os.F_OK))
            if not (there.is_dir() and os.access(there, os.W_OK)):
                self.fail(
                    f"{path}: {there} cannot be written in; name another directory", param, ctx
                )
        return path


PATH, DIRECTORY = PathType(), PathType(is_directory=True)
PAGE, JSON = PathType(begin=b"<!DOCTYPE html>"), PathType(begin=b'{\n "')


def kept_apart(command: click.Command) -> click.Command:
    """The command, which first refuses to write over what it reads, or twice to one file."""
    work = command.callback
    assert work is not None

    @wraps(work)
    def callback(**given: Any) -> Any:
        _require_apart(command.params, given)
        return work(**given)

    found = copy(command)
    found.callback = callback
    return found


def _require_apart(params: Sequence[click.Parameter], given: Mapping[str, Any]) -> None:
    written = {
        param.name: (f"{param.opts[0]} {path}", path, param.type)
        for param in params
        if isinstance(param.type, PathType) and param.type.writes
        if (path := given[param.name or ""]) is not None
    }
    read = list(_read({name: value for name, value in given.items() if name not in written}))
    files = [each for each in written.values() if not each[2].is_directory]
    directories = [each for each in written.values() if each[2].is_directory]
    for (option, path, _), (other, its, _) in combinations(files, 2):
        require(not _is_same(path, its), f"{option} and {other} are one file; name another for one")
    for option, path, kind in files:
        for place in read:
            if place.is_file():
                require(
                    not _is_same(path, place),
                    f"{option} would overwrite {place}, which is read; name another file",
                )
            else:
                require(
                    not path.is_file() or _begins(path, kind.begin) or not _lies_in(path, place),
                    f"{option} would overwrite a file of {place}, which is read; name another file",
                )
    for option, directory, kind in directories:
        for other, path, _ in files:
            require(
                not kind.has(path, directory),
                f"{other} is a file that {option} writes, too; name another file",
            )
        for place in read:
            require(
                not (kind.is_new and _is_same(place, directory)),
                f"{option} is a directory that is read; name another to write in",
            )
            require(
                place.is_dir() or not kind.has(place, directory),
                f"{place}, which is read, lies where {option} is written; name another directory",
            )


def _read(given: Mapping[str, Any]) -> Iterator[Path]:
    """Every file and folder that a value may name: a path, PATH.py:NAME, NAME=RUN or a run."""
    data = given.get("data_dir") or default_directory()
    bases = [Path(), Path("runs"), *(() if data is None else (data, data / "curves"))]
    for text in _texts(given):
        for name in (text, text.rpartition(":")[0], text.partition("=")[2]):
            places = [base / name for base in bases if name]
            # Whatever the text, os.path.exists does not raise; a name is looked for in this order.
            yield from islice((each for each in places if os.path.exists(each)), 1)  # noqa: PTH110


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, type):  # of --own
        with suppress(TypeError, OSError):
            yield inspect.getfile(value)
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are, or will be, one file; by links, too."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _begins(path: Path, begin: bytes) -> bool:
    """Whether a file is what the command wrote there before, or as good as that."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(begin)) == begin
    return False


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, itself or by a link."""
    if path.resolve().is_relative_to(folder.resolve()):
        return True
    for each in islice(files_below(folder), _MOST_FILES):
        with suppress(OSError):  # a link that leads nowhere, or a folder that is closed
            if each.samefile(path):
                return True
    return False
