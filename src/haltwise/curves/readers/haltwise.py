"""Runs that `HaltingMonitor.recording` wrote, one file a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from haltwise.curves.cells import measured
from haltwise.curves.raw import Keys, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.processes.signals import SIGNALS
from haltwise.recordings.runs import load_run

__all__ = ["READERS", "Haltwise"]


@final
class Haltwise(Reader):
    """What a monitor saw in each call of `update`, and the score if one was given."""

    def claims(self, path: Path, head: str) -> bool:
        return path.suffix == ".safetensors" and "recorded run" in head

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        run = load_run(paths[0])
        signals = run.signals.double().numpy()
        columns = dict(zip(SIGNALS, signals.T, strict=True))
        columns["step"] = np.arange(len(signals), dtype=np.float64)  # of a run, not of its session
        if run.is_scored:
            columns["score"] = run.scores.double().numpy()
        if run.maximizes:  # it holds the negatives
            columns |= {name: -columns[name] for name in ("loss", "score") if name in columns}
        # Every update gives them, so NaN is a loop that diverged. Other signals may lack.
        columns |= {name: measured(columns[name]) for name in ("loss", "score") if name in columns}
        return RawRuns(
            [columns],
            [{"run": paths[0].stem}],
            cost="step",
            metric="score" if run.is_scored else "loss",
            direction="max" if run.maximizes else "min",
            cost_unit="steps",
        )


READERS = {"haltwise": Haltwise()}
