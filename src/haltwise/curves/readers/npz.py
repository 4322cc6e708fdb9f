"""Archives of NumPy: what `Curves.save` writes, and matrices of losses."""

from dataclasses import fields
from typing import ClassVar, final

import numpy as np

from haltwise._core.arrays import real_numbers
from haltwise.curves.curves import Curves
from haltwise.curves.raw import RawRuns
from haltwise.curves.readers.archives import Archive, Arrays, ragged, texts

__all__ = ["READERS", "Matrix", "Saved"]


@final
class Saved(Archive):
    """What `Curves.save` writes: its fields."""

    needed: ClassVar[frozenset[str]] = frozenset(field.name for field in fields(Curves))

    def runs(self, arrays: Arrays) -> RawRuns:
        columns = [str(name) for name in arrays["columns"]]
        unit, direction = str(arrays["cost_unit"]), str(arrays["direction"])
        if direction not in ("min", "max"):
            raise ValueError(f"the direction is {direction!r}")
        if str(arrays["metric"]) not in columns:
            raise ValueError(f"the metric is {str(arrays['metric'])!r:.50}, which is no column")
        free = (unit, "cost", *(f"cost {number}" for number in range(2, len(columns) + 2)))
        cost = next(name for name in free if name not in columns)
        values = np.concatenate([arrays["values"], arrays["cost"][:, None]], 1)
        found = ragged(values, arrays["offset"], [*columns, cost])
        num = len(found)
        each = {name: texts(arrays[name], num) for name in ("name", "group", "task")}
        return RawRuns(
            found,
            [
                {"run": name, "group": group, "task": task}
                for name, group, task in zip(*each.values(), strict=True)
            ],
            cost=cost,
            metric=str(arrays["metric"]),
            direction="min" if direction == "min" else "max",
            cost_unit=unit,
            target=np.broadcast_to(real_numbers(arrays["target"], "target"), (num,)),
            budgets={cost: np.broadcast_to(real_numbers(arrays["budget"], "budget"), (num,))},
            is_since_start=True,
        )


@final
class Matrix(Archive):
    """losses [n, T+1], NaN where a run had ended; costs, target, budget, group, task, name."""

    is_general: ClassVar[bool] = True
    needed: ClassVar[frozenset[str]] = frozenset(("losses",))

    def runs(self, arrays: Arrays) -> RawRuns:
        losses = real_numbers(arrays["losses"], "losses")
        num, length = losses.shape
        costs = real_numbers(arrays.get("costs", np.arange(length)), "costs")
        spent = np.broadcast_to(costs, losses.shape)
        ends = length - np.argmax(~np.isnan(losses[:, ::-1]), 1)
        labels = [{"run": str(place)} for place in range(num)]
        for name in ("group", "task", "name"):
            if name in arrays:
                for label, text in zip(labels, texts(arrays[name], num), strict=True):
                    label["run" if name == "name" else name] = text
        each = {
            name: np.broadcast_to(real_numbers(arrays[name], name), (num,))
            for name in ("target", "budget")
            if name in arrays
        }
        return RawRuns(
            [
                {"cost": c[:end], "loss": row[:end]}
                for c, row, end in zip(spent, losses, ends, strict=True)
            ],
            labels,
            cost="cost",
            metric="loss",
            direction="min",
            cost_unit=None if "costs" in arrays else "steps",
            target=each.get("target"),
            budgets={"cost": each["budget"]} if "budget" in each else {},
        )


READERS = {"npz": Saved(), "matrix": Matrix()}
