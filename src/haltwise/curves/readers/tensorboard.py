"""Event files of TensorBoard: all files in a folder are one run, restarts included."""

import bisect
import os
import struct
import warnings
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

import numpy as np

from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise.curves.cells import measured
from haltwise.curves.columns import is_split
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.files import common_folder
from haltwise.curves.tables import PointTable

__all__ = ["READERS", "TensorBoard"]

_START = 1  # status of a session's log entry
_FLOAT, _DOUBLE = 1, 2  # types of tensors


class _Series(NamedTuple):
    """The points of one tag, steps increasing."""

    steps: "array[float]"
    values: "array[float]"
    seconds: "array[float]"

    def cut(self, step: float) -> int:
        """Remove what was recorded at this step and later; return how many points that were."""
        first = bisect.bisect_left(self.steps, step)
        num = len(self.steps) - first
        for column in self:
            del column[first:]
        return num


@final
class TensorBoard(Reader):
    """Scalars, by tag; needs the package `tensorboard`.

    Where the steps of a tag go back the run was restarted, and what had been recorded from there on
    is replaced. The column `seconds` counts the time while it ran, not the pauses between files.
    Folders that belong to a run are no runs: what `add_scalars` wrote to those of its own are
    columns TAG_NAME, those of folders beside each other that are called by data sets, `train` and
    `validation`, are columns FOLDER/TAG, and what `add_hparams` wrote is a summary.
    """

    def claims(self, path: Path, head: str) -> bool:
        return ".tfevents." in path.name

    def sources(self, paths: Sequence[Path]) -> list[list[Path]]:
        found: dict[Path, list[Path]] = {}
        for path in paths:
            found.setdefault(path.parent, []).append(path)
        for folder in [*found]:
            if folder.parent not in found:
                continue
            held = _Held.of(found[folder])
            if held.is_summary():
                del found[folder]
            elif held.is_part_of(folder):
                found[folder.parent] += found.pop(folder)
        splits: dict[Path, list[Path]] = {}
        for folder in found:
            if is_split(folder.name):
                splits.setdefault(folder.parent, []).append(folder)
        for run, folders in splits.items():
            if len(folders) > 1 or run in found:
                parts = [path for folder in folders for path in found.pop(folder)]
                found[run] = found.get(run, []) + parts
        return list(found.values())

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        series: dict[str, _Series] = {}
        folder, replaced = common_folder(paths), 0
        for place, files in groupby(sorted(paths, key=_order), lambda path: path.parent):
            own: dict[str, _Series] = {}
            replaced += sum(_read_file(path, own) for path in files)
            series |= own if place == folder else {_column(place, tag): own[tag] for tag in own}
        if replaced:
            warn(
                f"{folder} was restarted: {replaced} points that were recorded again are left out",
                DataWarning,
            )
        if not series:
            raise NothingRecordedError(f"the event files in {folder} hold no scalars")
        steps = np.unique(np.concatenate([np.asarray(tag.steps) for tag in series.values()]))
        seconds = np.zeros(len(steps))
        table = PointTable(Keys(), str(folder))
        for name, tag in series.items():
            rows = np.searchsorted(steps, tag.steps)
            seconds[rows] = np.maximum(seconds[rows], tag.seconds)
            values = measured(np.array(tag.values))
            table.add_numbers(f"{name} (tag)" if name in _OWN else name, rows, values)
        for name, values in zip(_OWN, (steps, seconds), strict=True):
            table.add_numbers(name, np.arange(len(steps)), values)
        table.end(range(len(steps)))
        name = folder.absolute().name
        return table.runs(name, is_told_apart=True, is_log=False, cost="step", cost_unit="steps")


_OWN = ("step", "seconds")
_HPARAMS = "_hparams_/"  # tags of TensorBoard's plugin


def _order(path: Path) -> tuple[Path, list[tuple[int, str]]]:
    """By folder, and in it by when the files were opened: names hold the time, and a number."""
    parts = path.name.split(".")
    return path.parent, [(int(part) if part.isdecimal() else -1, part) for part in parts]


def _column(folder: Path, tag: str) -> str:
    """The column of a tag in one of the folders that belong to a run."""
    return _part(folder, tag) or f"{folder.name}/{tag}"


def _part(folder: Path, tag: str) -> str:
    """The column of a tag in one of the folders, TAG_NAME, that `add_scalars` makes of it."""
    before = f"{tag.replace('/', '_')}_"
    return f"{tag}_{folder.name.removeprefix(before)}" if folder.name.startswith(before) else ""


class _Held(NamedTuple):
    """What the files of a folder hold."""

    series: dict[str, _Series]
    describes: bool
    """Whether hyperparameters are among it."""

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "_Held":
        series: dict[str, _Series] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is read again
            for path in sorted(paths, key=_order):
                _read_file(path, series)
            describes = any(
                value.tag.startswith(_HPARAMS)
                for path in paths
                for event in _events(path)
                for value in event.summary.value
            )
        return cls(series, describes)

    def is_part_of(self, folder: Path) -> bool:
        """Whether it is nothing but one tag of the run above the folder."""
        return len(self.series) == 1 and _part(folder, *self.series) != ""

    def is_summary(self) -> bool:
        """Whether it is what became of hyperparameters, one number a metric."""
        return self.describes and all(len(tag.steps) == 1 for tag in self.series.values())


def _read_file(path: Path, series: dict[str, _Series]) -> int:
    """Add the scalars of a file; return how many earlier points they replace."""
    replaced, opened, resumed = 0, 0.0, None
    for event in _events(path):
        if event.session_log.status == _START and event.step > 0:
            replaced += sum(tag.cut(event.step) for tag in series.values())
        for value in event.summary.value:
            number = _scalar(value)
            if number is None:
                continue
            step = float(event.step)
            if resumed is None:
                opened, resumed = event.wall_time, _seconds_before(step, series)
            tag = series.setdefault(value.tag, _Series(array("d"), array("d"), array("d")))
            if tag.steps and step <= tag.steps[-1]:
                replaced += tag.cut(step)
            for column, entry in zip(
                tag, (step, number, resumed + event.wall_time - opened), strict=True
            ):
                column.append(entry)
    return replaced


def _seconds_before(step: float, series: dict[str, _Series]) -> float:
    """How long the run had run when it came to a step."""
    before = (
        tag.seconds[place - 1]
        for tag in series.values()
        if (place := bisect.bisect_left(tag.steps, step)) > 0
    )
    return max(before, default=0.0)


def _events(path: Path) -> Iterator[Any]:
    """The events of a file; a last one that is cut off is left out."""
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    except ImportError:
        raise InputError(
            f"{path} can be read with TensorBoard only: pip install 'haltwise[tensorboard]'"
        ) from None
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for content, checksum in _records(path, file, size):
                event = Event.FromString(content)
                if event.HasField("summary") and any(
                    _scalar(value) is not None for value in event.summary.value
                ):
                    require(masked_crc32c(content) == checksum, _corrupt(path, "a checksum"))
                yield event
    except DecodeError as error:
        raise InputError(_corrupt(path, str(error))) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _records(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Records and their checksums: length [8], its checksum [4], content, checksum [4]."""
    while header := file.read(12):
        length = int.from_bytes(header[:8], "little")
        if len(header) < 12 or length + 4 > size - file.tell():
            require(length < 2**32, _corrupt(path, f"a record is said to have {length} bytes"))
            warn(
                f"{path} ends in the middle of a record, which is left out",
                DataWarning,
            )
            return
        content = file.read(length)
        yield content, struct.unpack("<I", file.read(4))[0]


def _corrupt(path: Path, why: str) -> str:
    return f"{path} is corrupt or no event file ({why}); restore it from a copy"


def _scalar(value: Any) -> float | None:
    """The number in a value of a summary; None if it is no scalar."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or any(d.size != 1 for d in value.tensor.tensor_shape.dim):
        return None
    tensor = value.tensor
    if tensor.dtype not in (_FLOAT, _DOUBLE):
        return None
    kind, given = ("<f", tensor.float_val) if tensor.dtype == _FLOAT else ("<d", tensor.double_val)
    if len(tensor.tensor_content) == struct.calcsize(kind):
        return float(struct.unpack(kind, tensor.tensor_content)[0])
    return float(given[0]) if len(given) == 1 else None


READERS = {"tensorboard": TensorBoard()}
