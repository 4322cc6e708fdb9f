"""Extrapolate a run's curve by a power law."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, final

from haltwise.curves.curves import Curve, Floats
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.extrapolation import extrapolation_score

__all__ = ["PowerLawRule"]

_EXPONENTS = (0.25, 0.5, 1.0, 2.0)
_BEGIN = 0.01  # of the budget, added to the time so that the start is finite


def _power(exponent: float, time: Floats) -> Floats:
    falling: Floats = (time + _BEGIN) ** -exponent
    return falling


@final
@dataclass(frozen=True)
class PowerLawRule(CurveRule):
    """Fit a + b t^-c to the last part of the curve and ask what comes of it; b >= 0.

    The exponent is the best of four. Source: Domhan et al. 2015, "Speeding up automatic
    hyperparameter optimization of deep neural networks by extrapolation of learning curves".
    """

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    tail: float = 1.0
    """The share of the points that are fitted, the last ones."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(price, tail) for tail in (1.0, 0.5, 0.25)]

    def score(self, curve: Curve) -> Floats:
        shapes = [partial(_power, exponent) for exponent in _EXPONENTS]
        return extrapolation_score(curve, shapes, self.tail, self.price)


CURVE_RULES = {"power-law": PowerLawRule}
