"""Successive halving in time: at each rung only the best of the peers go on (ASHA)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import numpy as np

from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.progress import share_spent
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.peers import Peers

__all__ = ["HalvingRule"]


@final
@dataclass(frozen=True)
class HalvingRule(CurveRule):
    """The score is the share of the peers that did worse, at rungs alone, and inf between.

    A level of 1 - 1/eta is asynchronous successive halving with the peers all there (Li et al.
    2020, "A system for massively parallel hyperparameter tuning").
    """

    highest_score: ClassVar[float] = 1.0

    first: float = 1 / 27
    """The share of the budget of the first rung."""
    eta: float = 3.0
    """How many times as far the next rung is."""
    peers: Peers = field(default_factory=Peers, repr=False, compare=False)

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(first, eta) for first in (1 / 27, 1 / 9) for eta in (2.0, 3.0, 4.0)]

    def fit(self, curves: Curves) -> Self:
        return replace(self, peers=Peers.of(curves))

    def score(self, curve: Curve) -> Floats:
        spent = share_spent(curve)
        num = 1 + int(np.floor(np.log(1 / self.first) / np.log(self.eta) + 1e-9))
        rungs = self.first * self.eta ** np.arange(num)
        passed = np.searchsorted(rungs, spent * (1 + 1e-9), side="right")
        is_rung = np.diff(passed, prepend=0) > 0
        return np.where(is_rung, self.peers.share_worse(curve), np.inf)


CURVE_RULES = {"asha": HalvingRule}
