"""The contract of formats that keep a folder for each run, and what their series become."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from haltwise.curves.cells import Floats, measured
from haltwise.curves.readers.base import Reader

__all__ = ["MetricPoints", "RunFolderReader", "joined"]


class RunFolderReader(Reader):
    """Takes all that lies in the folder of a run for what it is: files of one run."""

    @abstractmethod
    def run_folder(self, path: Path) -> Path | None:
        """The folder of the run that a file belongs to; None if it is of another format."""

    def claims(self, path: Path, head: str) -> bool:
        return self.run_folder(path) is not None

    def logs(self, folder: Path, paths: Sequence[Path]) -> list[Path]:
        """The files in the folder of a run that tell all of it, of which some were asked for."""
        return list(paths)

    def sources(self, paths: Sequence[Path]) -> list[list[Path]]:
        found: dict[Path, list[Path]] = {}
        for path in paths:
            folder = self.run_folder(path)
            if folder is not None:
                found.setdefault(folder, []).append(path)
        logs = (self.logs(folder, own) for folder, own in sorted(found.items()))
        return [each for each in logs if each]

    def folder(self, paths: Sequence[Path]) -> Path:
        return self.run_folder(paths[0]) or super().folder(paths)


class MetricPoints(NamedTuple):
    """What one metric was at which steps, in the order in which it was recorded."""

    steps: Sequence[float]
    values: Sequence[float]
    seconds: Sequence[float] = ()
    """When each was recorded, since the run began; empty where nobody knows."""

    def in_order(self) -> tuple[Floats, Floats, Floats]:
        """Steps that rise, their values and seconds.

        Where the steps go back, the run was resumed from there, and what follows replaces what had
        been recorded from that step on. Where all are the same nobody counted them: the points are.
        """
        steps = np.array(self.steps, np.float64)
        values = measured(np.array(self.values, np.float64))
        seconds = np.array(self.seconds or [np.nan] * len(steps), np.float64)
        if len(steps) > 1 and (steps == steps[0]).all():
            steps = np.arange(len(steps), dtype=np.float64)
        later = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], np.inf)
        kept = steps < later  # than all that follow
        return steps[kept], values[kept], seconds[kept]


def joined(series: Mapping[str, MetricPoints]) -> dict[str, Floats]:
    """One run of all series: the columns step, seconds where they are known, and each metric.

    Examples:
        >>> loss, accuracy = MetricPoints([0, 1], [3.0, 2.0]), MetricPoints([1], [0.5])
        >>> run = joined({"loss": loss, "acc": accuracy})
        >>> {name: column.tolist() for name, column in run.items()}
        {'step': [0.0, 1.0], 'loss': [3.0, 2.0], 'acc': [nan, 0.5]}
    """
    ordered = {name: one.in_order() for name, one in series.items()}
    steps = np.unique(np.concatenate([each[0] for each in ordered.values()]))
    seconds = np.full(len(steps), np.nan)
    columns: dict[str, Floats] = {}
    for name, (own, values, times) in ordered.items():
        rows = np.searchsorted(steps, own)
        seconds[rows] = np.fmax(seconds[rows], times)
        column = np.full(len(steps), np.nan)
        column[rows] = values
        columns[f"{name} (metric)" if name in _OWN else name] = column
    known = {} if np.isnan(seconds).all() else {"seconds": seconds}
    return {"step": steps, **known, **columns}


_OWN = ("step", "seconds")
