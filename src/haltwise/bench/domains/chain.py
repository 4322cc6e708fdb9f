"""A chain whose law is known, so that the best causal rule is known as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, final

import numpy as np
import torch

from haltwise.bench.domain import Domain, Sample
from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.rule import CurveRule
from haltwise.planning import optimal_stopping

__all__ = ["BestOnChainRule", "ChainDomain"]

_STATES = 40
_STEPS = 80
_BLOCKS = 20
_LOSSES: Floats = np.exp(-np.arange(_STATES) / 6)
_CHANCES: Floats = 0.9 * np.exp(-np.arange(_STATES) / 15) * (np.arange(_STATES) < _STATES - 1)


@final
@dataclass(frozen=True)
class BestOnChainRule(CurveRule):
    """Stop where the loss is at most what going on costs, by dynamic programming."""

    price: float = 0.1
    """What a unit of cost must gain, in units of the metric."""

    @property
    def fixed_level(self) -> float:
        return 0.0

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [] if price is None else [cls(price)]

    def score(self, curve: Curve) -> Floats:
        state = curve.columns["state"].astype(int)
        unit = curve.loss[0] / _LOSSES[state[0]]
        step = curve.budget / _STEPS
        advantage = _going_on(unit, self.price * step)
        best: Floats = advantage[np.round(curve.cost / step).astype(int), state]
        return best


def _going_on(unit: float, price: float) -> Floats:
    """What going on gains over stopping after each number of steps in each state.

    Args:
        unit: Of the losses.
        price: Of a step.

    Returns:
        Shape [steps + 1, states]; 0 after the last step.
    """
    transition = np.diag(1 - _CHANCES) + np.diag(_CHANCES[:-1], 1)
    losses = torch.from_numpy(unit * _LOSSES)
    found = optimal_stopping(torch.from_numpy(transition), losses, price, _STEPS)
    return np.vstack((found.advantage.numpy(), np.zeros(_STATES)))


@final
@dataclass(frozen=True)
class ChainDomain(Domain):
    """A chain of states: one further with a known chance at each step, its loss known in each."""

    title: ClassVar[str] = "a chain of known law"
    is_made: ClassVar[bool] = True
    reference: ClassVar[type[CurveRule] | None] = BestOnChainRule

    def curves(self, sample: Sample) -> Curves:
        generator = np.random.default_rng([sample.seed, 6])
        state = np.zeros((sample.num_runs, _STEPS + 1), int)
        for step in range(_STEPS):
            moves = generator.random(sample.num_runs) < _CHANCES[state[:, step]]
            state[:, step + 1] = state[:, step] + moves
        runs = [
            {"cost": np.arange(_STEPS + 1.0), "loss": _LOSSES[row], "state": row.astype(float)}
            for row in state
        ]
        groups = [f"block {i % _BLOCKS}" for i in range(sample.num_runs)]
        return Curves.from_runs(runs, metric="loss", group=groups, budget=_STEPS, cost_unit="steps")


DOMAINS = {"chain": ChainDomain()}
