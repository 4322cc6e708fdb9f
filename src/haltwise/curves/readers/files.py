"""Text files and JSON, read so that no file can fill the memory."""

import codecs
import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, final

from haltwise._core.errors import InputError, require
from haltwise.datasets.files import opened

__all__ = [
    "common_folder",
    "files_below",
    "inner_suffix",
    "open_text",
    "parse_json",
    "read_head",
    "stem",
]

_HEAD = 2**14  # bytes
_TEXT = 32 * 2**20  # bytes of text that any compressed file may hold: numbers take more room
_ROOM = 200 * 2**20  # bytes that parsed JSON may take
_NUMBER, _CONTAINER = 120, 200  # bytes, at most, of an entry with its key and of what holds it
_PACKED = (".gz", ".xz")


@final
class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than a compressed file should hold."""

    def __init__(self, file: BinaryIO, most: int, path: Path) -> None:
        self._file, self._left, self._path = file, most, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._file.read(len(buffer))
        self._left -= len(piece)
        require(
            self._left >= 0 or self._path.suffix not in _PACKED,
            f"{self._path} holds too much for so small a file; if that is right, decompress it "
            "first",
        )
        buffer[: len(piece)] = piece
        return len(piece)


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a file of UTF-8, decompressed if its name ends in `.gz` or `.xz`; lines end as they do.

    Raises:
        InputError: It cannot be read, is corrupt, no text, or too large once decompressed.
    """
    try:
        with opened(path) as (file, _):
            most = max(_TEXT, 20 * path.stat().st_size)
            raw = io.BufferedReader(_Bounded(file, most, path), 2**18)
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    except UnicodeDecodeError as error:
        wide = error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        raise InputError(
            f"{path} is no text in UTF-8 ({error.reason}); convert it, for instance by "
            f"iconv -f {'UTF-16' if wide else 'LATIN1'} -t UTF-8 {path}"
        ) from None


def files_below(folder: Path) -> Iterator[Path]:
    """What lies in a folder and those below but for folders; none that is removed meanwhile."""
    return (Path(root, name) for root, _, names in os.walk(folder) for name in names)


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder in which all files lie, at whatever depth."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def read_head(path: Path) -> str:
    """The first characters of a file, what is no text replaced; empty if it cannot be read."""
    try:
        with opened(path) as (file, _):
            return file.read(_HEAD).decode("utf-8-sig", errors="replace")
    except InputError:
        return ""


def parse_json(text: str, where: str) -> Any:
    """Parse JSON, unless it is made to take far more room than its text.

    Raises:
        InputError: It is no JSON, too deeply nested, or too large.
    """
    entries, containers = text.count(",") + text.count(":"), text.count("{") + text.count("[")
    require(
        _NUMBER * entries + _CONTAINER * containers <= _ROOM + 2 * len(text),
        f"{where} has {entries} entries of JSON, too many to be parsed at once; write one object a "
        "line (.jsonl)",
    )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); restore it from a copy") from None


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in _PACKED else path


def inner_suffix(path: Path) -> str:
    """The ending of a file's name before that of its compression, in lower case.

    Examples:
        >>> inner_suffix(Path("logs/run 1.CSV.gz"))
        '.csv'
    """
    return _unpacked(path).suffix.lower()


def stem(path: Path) -> str:
    """The name of a file without its endings.

    Examples:
        >>> stem(Path("logs/run 1.csv.gz"))
        'run 1'
    """
    return _unpacked(path).stem
