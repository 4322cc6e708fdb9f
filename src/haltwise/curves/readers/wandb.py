"""Charts exported from Weights & Biases as CSV: a column for each run and metric."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from haltwise._core.errors import InputError, require
from haltwise.curves.cells import is_missing
from haltwise.curves.columns import find_column
from haltwise.curves.raw import Keys, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.csv import header_of, is_csv, read_table

__all__ = ["READERS", "Wandb"]

_BETWEEN = " - "
_BANDS = ("__MIN", "__MAX")  # of what a chart has smoothed or sampled


@final
class Wandb(Reader):
    """A column of steps or times, and columns "RUN - METRIC".

    Exports of a run's history (`run.history()`, `run.scan_history()`) are plain tables or JSON
    lines.
    """

    def claims(self, path: Path, head: str) -> bool:
        names = header_of(head) if is_csv(path) else []
        return (
            any(_BETWEEN in name for name in names[1:])
            and _BETWEEN not in names[0]
            and find_column(names, ("run", "group")) is None
        )

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        path = paths[0]
        read = read_table(path, None, is_log=True)
        (table,) = read.runs
        shared = [name for name in table if _BETWEEN not in name]
        for name, why in read.texts.items():
            if name not in shared:
                raise InputError(f"{why}; mend it, or export the chart again")
        require(
            len(shared) > 0,
            f"{path} has no column of steps or times before those of the runs; export it again",
        )
        metrics: dict[str, dict[str, str]] = {}
        for name in table:
            run, between, metric = name.rpartition(_BETWEEN)
            if between and not metric.endswith(_BANDS):
                metrics.setdefault(run, {})[metric] = name
        runs = []
        for columns in metrics.values():
            known = np.any([~is_missing(table[name]) for name in columns.values()], 0)
            rows = {name: table[name][known] for name in shared}
            runs.append(rows | {metric: table[name][known] for metric, name in columns.items()})
        labels = [{"run": name} for name in metrics]
        return RawRuns(runs, labels, cost=shared[0], is_log=False)


READERS = {"wandb": Wandb()}
