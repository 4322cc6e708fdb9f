"""Extrapolate a run's curve by a power law."""

from dataclasses import dataclass
from functools import partial
from typing import final

from haltwise.curves.curves import Floats
from haltwise.curves.rules.extrapolation import ExtrapolationRule

__all__ = ["PowerLawRule"]

_BEGIN = 0.01  # of the budget, added to the time so that the start is finite


def _power(exponent: float, time: Floats) -> Floats:
    falling: Floats = (time + _BEGIN) ** -exponent
    return falling


@final
@dataclass(frozen=True)
class PowerLawRule(ExtrapolationRule):
    """Fit a + b t^-c to the last part of the curve and ask what comes of it; b >= 0.

    The exponent is the best of four. Source: Domhan et al. 2015, "Speeding up automatic
    hyperparameter optimization of deep neural networks by extrapolation of learning curves".
    """

    shapes = tuple(partial(_power, exponent) for exponent in (0.25, 0.5, 1.0, 2.0))


CURVE_RULES = {"power-law": PowerLawRule}
