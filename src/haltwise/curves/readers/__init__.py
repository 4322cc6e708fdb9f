"""Formats of recorded runs, one file each, which defines the table `READERS`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from haltwise._core import discovery as _discovery
from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise._core.settings import shown
from haltwise.curves.columns import Direction, is_split
from haltwise.curves.curves import Curves
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.files import files_below, read_head, stem
from haltwise.datasets.store import default_directory

__all__ = ["Reader", "read", "readers", "settled"]

_FOLDER = "curves"  # of the data directory
_MOST_FILES = 100_000


def readers() -> Mapping[str, Reader]:
    """Every format by its name; the special ones, which are asked first, before the general."""
    found = _discovery.collect(sys.modules[__name__], "READERS")
    return dict(sorted(found.items(), key=lambda entry: (entry[1].is_general, entry[0])))


def read(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    run: str | None = None,
    cost: str | None = None,
    cost_unit: str | None = None,
    metric: str | None = None,
    direction: Direction | None = None,
    target: npt.ArrayLike | str | None = None,
    budget: npt.ArrayLike | str | None = None,
    group: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
) -> Curves:
    """Read recorded runs of any format, from a file or from a folder of files of one format.

    What nobody names is what the format says; where that says nothing, the metric is the column
    whose name tells that it is a validation loss, else another loss or accuracy, and the cost is a
    column of seconds, else steps, else epochs, one that rises before others. A warning says what
    was chosen.

    A metric that a log holds as NaN was measured, and is the worst there is: the run diverged. What
    was not measured is an empty cell, null, None or NA. Arrays and data frames have NaN for that;
    give them inf where a run diverged.

    Args:
        path: A file, or a folder, of which every file of a known format is read.
        format: One of `readers`; recognised by names and contents if None.
        run: In tables, the column that tells runs apart, together with those of the group and the
            task; one named run or trial if None.
        cost: The column of what had been spent at each point. Times of day are counted from the
            first of a run.
        cost_unit: What the cost is counted in, in words; the name of its column if None. Models
            that were learned in a unit of that name take costs as they are.
        metric: The column that is judged.
        direction: Whether lower ("min") or higher ("max") values of the metric are better; told by
            its name if None.
        target: The value of the metric that is a success: a number, one a run, or the name of a
            column or label that holds it.
        budget: What a run may spend, in units of the cost; as `target`. Points beyond one that is
            named are left out, and so are runs that measured no metric before.
        group: The column or label that says the group of each run, or one text a run. Labels are
            the texts that are the same throughout a run, "run", and for files of a folder "folder",
            in which they lie, and "file". Each run is a group of its own if there is none.
        task: What a run worked on, as `group`; all are of one task if there is none.
        columns: Those to keep beside the cost and the metric; all if None.
        data_dir: Where a relative path lies that is not in the working directory, or a folder
            `curves` in it; HALTWISE_DATA_DIR if None.

    Returns:
        The runs, each in the order of its costs.

    Raises:
        InputError: The format is unknown, a file is missing or corrupt, a column is missing, or
            what nobody names cannot be chosen.

    Warns:
        DataWarning: Columns were chosen by their names, or something was left out; the message says
            what and why.

    Examples:
        >>> import tempfile
        >>> lines = ("run,step,loss", "a,1,3.0", "a,2,2.0", "b,1,5.0")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "runs.csv"
        ...     _ = path.write_text(chr(10).join(lines))
        ...     curves = read(path, cost="step", metric="loss", target=2.5)
        >>> curves.num_runs, curves.succeeded.tolist()
        (2, [True, False])
    """
    curves = Curves.from_runs(
        **settled(
            path,
            format=format,
            run=run,
            cost=cost,
            cost_unit=cost_unit,
            metric=metric,
            direction=direction,
            target=target,
            budget=budget,
            group=group,
            task=task,
            columns=columns,
            data_dir=data_dir,
        )
    )
    return curves if budget is None else curves.within_budgets()


def settled(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    run: str | None = None,
    cost_unit: str | None = None,
    group: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    **chosen: Any,
) -> dict[str, Any]:
    """What `read` gives to `Curves.from_runs`; a budget that nothing tells is missing there."""
    require(
        isinstance(path, str | Path), f"name a file or a folder of recorded runs, got {shown(path)}"
    )
    place = _find(Path(path), data_dir)
    require(  # a pipe can be read but once, and waits for whoever writes it
        place.is_dir() or place.is_file(),
        f"{place} is neither a file nor a folder; write the runs to a file",
    )
    table = readers()
    if format is not None:
        _discovery.lookup(table, format, "format")
    paths = _files(place) if place.is_dir() else [place]
    name, mine = _recognise(place, paths, table, format)
    texts = [None if each is None or not isinstance(each, str) else each for each in (group, task)]
    keys = Keys(run, *texts)
    sources = table[name].sources(mine)
    parts, single = [], []
    nothing: list[NothingRecordedError] = []
    for source in sources:
        try:
            part = table[name].read(source, keys)
        except NothingRecordedError as error:
            nothing.append(error)
        else:
            folder = table[name].folder(source)
            if len(source) == len(part.runs) == 1:
                single.append(source[0])
            parts.append(_labelled(part, source[0], folder, place, alone=len(sources) == 1))
    require(len(sources) > 0, f"{place} holds no log of a run, only what lies beside one")
    if not parts:
        raise nothing[0]
    _warn_of_splits(single)
    if nothing:
        warn(
            f"left out: {len(nothing)} of {len(sources)} logs without a point; {nothing[0]}",
            DataWarning,
        )
    found = RawRuns.merged(parts).settled(group=group, task=task, **chosen)
    if cost_unit is not None:
        found["cost_unit"] = cost_unit
    return found


def _find(path: Path, data_dir: str | Path | None) -> Path:
    """The path, or that below the data directory."""
    base = default_directory() if data_dir is None else Path(data_dir)
    places = [path]
    if base is not None and not path.is_absolute():
        places += [base / path, base / _FOLDER / path]
    for place in places:
        if place.exists():
            return place
    raise InputError(f"there is no file or folder {' and no '.join(map(str, places))}")


def _files(folder: Path) -> list[Path]:
    """All files in a folder and those below, in the order of their names; no hidden ones."""
    found = []
    for path in files_below(folder):
        if path.is_file() and not any(
            part.startswith(".") for part in path.relative_to(folder).parts
        ):
            found.append(path)
            require(
                len(found) <= _MOST_FILES,
                f"{folder} has more than {_MOST_FILES} files; name a folder of recorded runs",
            )
    return sorted(found)


def _recognise(
    place: Path, paths: Sequence[Path], table: Mapping[str, Reader], asked: str | None
) -> tuple[str, list[Path]]:
    """The one format of the files, and those that have it."""
    if asked is not None and not place.is_dir():
        return asked, [place]
    found: dict[str, list[Path]] = {}
    for path in paths:
        head = read_head(path)
        name = next((name for name, reader in table.items() if reader.claims(path, head)), None)
        if name is not None:
            found.setdefault(name, []).append(path)
    if asked is not None:
        # A file may be of a special format and of a general one as well.
        others = (path for path in paths if table[asked].claims(path, read_head(path)))
        mine = found.get(asked) or [*others]
        require(len(mine) > 0, f"no file in {place} is of the format {asked}")
        return asked, mine
    known = ", ".join(table)
    require(
        len(found) > 0,
        f"no file in {place} is of a known format; those are {known}"
        if place.is_dir()
        else f"{place} is of no known format; those are {known} (format=...)"
        + ("; JSON must have one object a line" if read_head(place).lstrip()[:1] in "[{" else ""),
    )
    listed = " and ".join(f"{name} ({len(files)})" for name, files in found.items())
    require(
        len(found) == 1,
        f"{place} has files of several formats, {listed}; name the one to read (format=...)",
    )
    return next(iter(found.items()))


def _warn_of_splits(paths: Sequence[Path]) -> None:
    """Say where one run may have a file for each set of data, which count as runs."""
    beside: dict[Path, list[str]] = {}
    for path in paths:
        if is_split(stem(path)):
            beside.setdefault(path.parent, []).append(path.name)
    found = [(folder, names) for folder, names in beside.items() if len(names) > 1]
    if found:
        folder, names = found[0]
        warn(
            f"{' and '.join(names)} in {folder} count as runs of their own; if they are of one "
            "run, make one table of them, with a column for each",
            DataWarning,
        )


def _labelled(part: RawRuns, path: Path, lies: Path, place: Path, *, alone: bool) -> RawRuns:
    """The runs of a source with labels that say where in the folder it lies."""
    if not place.is_dir():
        return part
    lies, place = lies.resolve(), place.resolve()
    folder = lies.relative_to(place).as_posix() if lies.is_relative_to(place) else "."
    labels = []
    for label in part.labels:
        name = label["run"]
        if not alone and folder != "." and "folder" not in label:
            is_its = len(part.labels) == 1 and f"/{folder}".endswith(f"/{name}")  # named after it
            name = folder if is_its else f"{folder}/{name}"
        labels.append({"folder": folder, "file": path.name, **label, "run": name})
    return replace(part, labels=labels)
