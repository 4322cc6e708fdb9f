"""TaskSet: hyperparameters of Adam on small tasks (Apache-2.0).

Source: github.com/releaunifreiburg/DPL, data of google-research TaskSet; Metz et al. 2020, Kadra et
al. 2023.
"""

from typing import ClassVar, final

import numpy as np

from haltwise._core.arrays import real_numbers
from haltwise.curves.cells import measured
from haltwise.curves.raw import RawRuns
from haltwise.curves.readers.archives import Archive, Arrays, texts

__all__ = ["READERS", "TaskSet"]

_STEPS = 200  # from one point to the next
_SPLITS = ("train", "valid", "test")


@final
class TaskSet(Archive):
    """Losses of runs of one length; NaN or infinite once they have diverged."""

    needed: ClassVar[frozenset[str]] = frozenset((*_SPLITS, "task", "hp", "hp_name"))

    def runs(self, arrays: Arrays) -> RawRuns:
        losses = measured(np.stack([real_numbers(arrays[name], name) for name in _SPLITS], -2))
        num_tasks, num_runs, _, length = losses.shape  # [tasks, runs, splits, points]
        tasks = texts(arrays["task"], num_tasks)
        steps = _STEPS * np.arange(length, dtype=np.float64)
        return RawRuns(
            [
                {"step": steps, **dict(zip(_SPLITS, run, strict=True))}
                for task in losses
                for run in task
            ],
            [
                {"run": f"{task}/{place}", "task": task}
                for task in tasks
                for place in range(num_runs)
            ],
            cost="step",
            metric="valid",
            direction="min",
            group="task",
            task="task",
            cost_unit="steps",
        )


READERS = {"taskset": TaskSet()}
