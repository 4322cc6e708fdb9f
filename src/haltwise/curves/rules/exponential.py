"""Extrapolate a run's curve by an exponential."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, final

import numpy as np

from haltwise.curves.curves import Curve, Floats
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.extrapolation import extrapolation_score

__all__ = ["ExponentialRule"]

_RATES = (1.0, 3.0, 10.0, 30.0, 100.0)  # per budget


def _decay(rate: float, time: Floats) -> Floats:
    falling: Floats = np.exp(-rate * time)
    return falling


@final
@dataclass(frozen=True)
class ExponentialRule(CurveRule):
    """Fit a + b exp(-k t) to the last part of the curve and ask what comes of it; b >= 0.

    The rate is the best of five, from one to a hundred per budget.
    """

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    tail: float = 1.0
    """The share of the points that are fitted, the last ones."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(price, tail) for tail in (1.0, 0.5, 0.25)]

    def score(self, curve: Curve) -> Floats:
        shapes = [partial(_decay, rate) for rate in _RATES]
        return extrapolation_score(curve, shapes, self.tail, self.price)


CURVE_RULES = {"exponential": ExponentialRule}
