"""Extrapolate a run's curve by an exponential."""

from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np

from haltwise.curves.curves import Floats
from haltwise.curves.rules.extrapolation import ExtrapolationRule

__all__ = ["ExponentialRule"]


def _decay(rate: float, time: Floats) -> Floats:
    falling: Floats = np.exp(-rate * time)
    return falling


@final
@dataclass(frozen=True)
class ExponentialRule(ExtrapolationRule):
    """Fit a + b exp(-k t) to the last part of the curve and ask what comes of it; b >= 0.

    The rate is the best of five, from one to a hundred per budget.
    """

    shapes = tuple(partial(_decay, rate) for rate in (1.0, 3.0, 10.0, 30.0, 100.0))


CURVE_RULES = {"exponential": ExponentialRule}
