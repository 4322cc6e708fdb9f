"""Stop a run whose gradient is small, where its norm is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np

from haltwise.curves.curves import Curve, Floats
from haltwise.curves.progress import first_known
from haltwise.curves.rule import CurveRule

__all__ = ["GradientNormRule"]


@final
@dataclass(frozen=True)
class GradientNormRule(CurveRule):
    """The score is the logarithm of the norm of the gradient, inf where it is not known."""

    to_first: bool = False
    """Whether the norm is divided by the first that is known."""
    column: str = "grad_norm"
    """The column that holds it."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(False), cls(True)]

    def score(self, curve: Curve) -> Floats:
        if self.column not in curve.columns:
            return np.full(curve.num_points, np.inf)
        norm = np.abs(curve.columns[self.column])
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.log(norm)
            if self.to_first:
                size = size - first_known(size)
        return np.where(np.isnan(size), np.inf, size)


CURVE_RULES = {"gradient-norm": GradientNormRule}
