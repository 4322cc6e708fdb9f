"""What Weights & Biases keeps of a run on the disk: `wandb/run-.../run-ID.wandb`."""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from haltwise._core.errors import DataWarning, refusing_others, require, warn
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.files import parse_json
from haltwise.curves.readers.jsonl import flat, read_objects
from haltwise.curves.readers.run_folder import RunFolderReader

__all__ = ["READERS", "WandbFiles"]

_FOLDER = re.compile(r"(offline-)?run-\d{8}_\d{6}-\w+", re.ASCII)
_SUFFIX = ".wandb"
_HEAD = b":W&B\xe1\xbe\x00"
_BLOCK = 2**15  # bytes; no record begins in the last six
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4  # parts of records
_HISTORY, _RUN = 2, 17  # fields of a record
_ITEM, _CONFIG, _UPDATE, _PROJECT, _NAME = 1, 4, 1, 3, 8  # fields of those
_KEY, _NESTED, _JSON = 1, 2, 16  # fields of an item
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is written


@final
class WandbFiles(RunFolderReader):
    """The history of a run; settings are labels, `config.lr`, and so is the project.

    A run that was resumed has a folder for each time, which are called by its identity.
    """

    def run_folder(self, path: Path) -> Path | None:
        # Logs of the latest run are linked beside it, and one in it leads elsewhere.
        folders = ((path.parent.resolve() / path.name).parents, path.resolve().parents)
        every = (folder for each in folders for folder in each)
        found = next((folder for folder in every if _FOLDER.fullmatch(folder.name)), None)
        return folders[0][0] if found is None and path.suffix == _SUFFIX else found

    def logs(self, folder: Path, paths: Sequence[Path]) -> list[Path]:
        asked = [path for path in paths if path.suffix == _SUFFIX]
        return asked or sorted(folder.glob(f"*{_SUFFIX}"))

    def sources(self, paths: Sequence[Path]) -> list[list[Path]]:
        found: dict[tuple[Path, str], list[Path]] = {}
        for path in (path for source in super().sources(paths) for path in source):
            found.setdefault((path.parent.parent, path.name), []).append(path)
        return [sorted(source, key=_begun) for source in found.values()]

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        labels: dict[str, str] = {}
        history = (point for path in paths for point in _history(path, labels))
        found = read_objects(history, str(paths[0]), keys, paths[0].stem)
        return replace(found, labels=[{**each, **labels} for each in found.labels])


def _begun(path: Path) -> str:
    """When a log was begun, as the name of its folder tells."""
    return path.parent.name.removeprefix("offline-")


def _history(path: Path, labels: dict[str, str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The points of a run; what is said of the run itself goes to the labels."""
    content = path.read_bytes()
    if not content:
        raise NothingRecordedError(f"{path} is empty")
    require(content.startswith(_HEAD), _corrupt(path, "another beginning"))
    number = 0
    for record in _records(path, content):
        with refusing_others(_corrupt(path, "a record that is none")):
            for field, value in _fields(record):
                if field == _HISTORY:
                    number += 1
                    yield number, _items(value, path)
                elif field == _RUN:
                    labels |= _described(value, path)


def _described(record: bytes, path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, value in _fields(record):
        if field == _NAME:
            found["run"] = value.decode()
        elif field == _PROJECT:
            found["project"] = value.decode()
        elif field == _CONFIG:
            settings = _items(value, path, _UPDATE)
            found |= {f"config.{n}": str(each) for n, each in flat(settings) if n[:1] != "_"}
    return found


def _items(message: bytes, path: Path, kind: int = _ITEM) -> dict[str, Any]:
    """The values of a message by name; those of nested names are joined by dots."""
    found: dict[str, Any] = {}
    for field, item in _fields(message):
        if field == kind and isinstance(item, bytes):
            parts = [(f, value.decode()) for f, value in _fields(item) if isinstance(value, bytes)]
            name = ".".join(text for f, text in parts if f in (_KEY, _NESTED))
            for _, text in filter(lambda part: part[0] == _JSON, parts):
                found[name] = parse_json(text, str(path))
    return found


def _records(path: Path, content: bytes) -> Iterator[bytes]:
    """Records: blocks of 32 KB hold their parts, each behind its checksum, length and kind."""
    place, begun = len(_HEAD), b""
    while place < len(content):
        left = _BLOCK - place % _BLOCK
        head = content[place : place + 7]
        if left < 7 or not any(head):  # nothing more in this block
            place += left
            continue
        length, kind = int.from_bytes(head[4:6], "little"), head[-1]
        part = content[place + 7 : place + 7 + length]
        if len(head) < 7 or len(part) < length:
            warn(f"{path} ends in the middle of a record, which is left out", DataWarning)
            return
        checksum = int.from_bytes(head[:4], "little")
        require(zlib.crc32(head[-1:] + part) == checksum, _corrupt(path, "a checksum"))
        place += 7 + length
        begun = part if kind in (_WHOLE, _FIRST) else begun + part
        if kind in (_WHOLE, _LAST):
            yield begun


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message of Protocol Buffers, by number."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _BYTES:
            length, place = _varint(message, place)
        if length is None or place + length > len(message):
            raise ValueError("no field")
        yield key >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, the lowest first, and where it ends."""
    number = shift = 0
    while True:
        number |= (message[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if message[place - 1] < 0x80:
            return number, place


def _corrupt(path: Path, why: str) -> str:
    return f"{path} is corrupt or no log of Weights & Biases ({why}); restore it from a copy"


READERS = {"wandb-files": WandbFiles()}
