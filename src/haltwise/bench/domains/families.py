"""Steps of optimizers on this package's own families of problems."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import numpy as np
import torch

from haltwise.bench.domain import Domain, Sample
from haltwise.curves.curves import Curves, Floats
from haltwise.models import loading
from haltwise.rollout.record import record
from haltwise.tasks import family
from haltwise.update_rules import UpdateRule, make

__all__ = ["FamiliesDomain"]

_STEPS = 60
_BLOCKS = 5

_ADAM: Mapping[str, float] = MappingProxyType(
    {
        "regression-10d-plain": 0.3,
        "regression-10d-noisy": 0.1,
        "logistic-10d": 0.1,
        "student-t-10d": 0.1,
        "rosenbrock-2d": 0.1,
    }
)
"""Families that Adam minimises, with its learning rate."""

_SHIPPED = ("regression-2d", "regression-10d", "quadratic-10d")
"""Families that the optimizer of their name, shipped with the package, minimises."""


@final
@dataclass(frozen=True)
class FamiliesDomain(Domain):
    """Adam and the shipped optimizers on families of problems, judged by their excess.

    The families are known and their problems new: a group is a block of problems of a family.
    """

    title: ClassVar[str] = "optimizers on our own families"
    is_made: ClassVar[bool] = True
    scored: ClassVar[str | None] = "excess"

    def curves(self, sample: Sample) -> Curves:
        pairs: list[tuple[str, UpdateRule]] = [
            (name, make("adam", {"learning_rate": rate})) for name, rate in _ADAM.items()
        ]
        pairs += [(name, loading.load(name).rule) for name in _SHIPPED]
        each = max(_BLOCKS, sample.num_runs // len(pairs))
        runs: list[dict[str, Floats]] = []
        tasks: list[str] = []
        for place, (name, rule) in enumerate(pairs):
            generator = torch.Generator().manual_seed(1000 * sample.seed + place)
            recorded = record(rule, family(name).sample(each, generator), _STEPS)
            loss, excess = (t.double().numpy() for t in (recorded.loss, recorded.excess))
            norm = recorded.known("log_grad_norm").double().exp().numpy()
            runs += [
                {"cost": np.arange(_STEPS + 1.0), "loss": a, "excess": b, "grad_norm": c}
                for a, b, c in zip(loss, excess, norm, strict=True)
            ]
            tasks += [name] * each
        groups = [f"{task}, block {i % _BLOCKS}" for i, task in enumerate(tasks)]
        return Curves.from_runs(
            runs, metric="loss", group=groups, task=tasks, budget=_STEPS, cost_unit="steps"
        )


DOMAINS = {"families": FamiliesDomain()}
