"""NanoGPT speedrun: logs of its records and of its benchmark of optimizers (MIT).

Source: github.com/KellerJordan/modded-nanogpt; Jordan et al.
"""

from typing import ClassVar, final

import numpy as np

from haltwise._core.arrays import real_numbers
from haltwise.curves.raw import RawRuns
from haltwise.curves.readers.archives import Archive, Arrays, evaluated, ragged, texts

__all__ = ["READERS", "NanoGpt"]


@final
class NanoGpt(Archive):
    """Validation losses by step; tracks, whose losses can be compared, are the tasks."""

    needed: ClassVar[frozenset[str]] = frozenset(
        ("column", "value", "offset", "num_steps", "record", "log")
    )

    def runs(self, arrays: Arrays) -> RawRuns:
        found = ragged(arrays["value"], arrays["offset"], [str(n) for n in arrays["column"]])
        num = len(found)
        for run in found:
            run["val_loss"] = evaluated(run["val_loss"])
        steps = real_numbers(arrays["num_steps"], "num_steps")
        if steps.shape != (num,):
            raise ValueError(f"num_steps has shape {list(steps.shape)}, not [{num}]")
        labels = [
            {"run": f"{record}/{log}", "record": record, "track": record.partition("/")[0]}
            for record, log in zip(
                texts(arrays["record"], num), texts(arrays["log"], num), strict=True
            )
        ]
        return RawRuns(
            found,
            labels,
            cost="step",
            metric="val_loss",
            direction="min",
            group="record",
            task="track",
            cost_unit="steps",
            budgets={"step": np.where(steps > 0, steps, np.nan)},
        )


READERS = {"nanogpt": NanoGpt()}
