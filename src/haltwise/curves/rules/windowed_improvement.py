"""Stop a run whose improvements, over as long as its noise asks for, are not worth their price."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np

from haltwise._core.settings import price_per_unit, whole_number
from haltwise.curves.curves import Curve, Floats, Integers
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.progress import best_so_far

__all__ = ["WindowedImprovementRule"]

_LATELY = 5  # improvements, which noise puts in falling order once in 120 times
_ROUNDING = 1e-12  # of a loss: of falls that differ by less, neither is the larger


@final
@dataclass(frozen=True)
class WindowedImprovementRule(CurveRule):
    """Stop at the last improvement that was not worth its price, or where noise hides it, at many.

    A loss that always falls, and by less each time, is taken at its word: the score is its last
    improvement in prices of what it cost, as that of `UntunedImprovementRule`. Where it rose, or
    fell by more than before, in the last five steps, a single improvement tells little; the score
    is then what the best loss gained over the window, in prices of what the window cost.

    Raises:
        InputError: The price is not above 0 and finite, or the window is no number of points.
    """

    price: float
    """What a unit of cost must gain, in units of the metric."""
    window: int = 20
    """How many points noise may hide improvements for; so many more are seen at most."""

    def __post_init__(self) -> None:
        price_per_unit(self.price)
        whole_number("window", self.window)

    @property
    def fixed_level(self) -> float:
        return 1.0

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        """None to give runs up, where nothing says what an improvement is worth."""
        return [] if price is None else [cls(price)]

    def score(self, curve: Curve) -> Floats:
        best = best_so_far(curve.loss)
        points = np.arange(len(best))
        since = points - self._looks_back(curve)
        known = since >= 0
        before, spent = best[since[known]], curve.cost[known] - curve.cost[since[known]]
        with np.errstate(invalid="ignore"):
            gained = np.nan_to_num(before - best[known], nan=0.0, posinf=np.inf)  # inf to inf: none
        score = np.full(len(best), np.inf)
        score[known] = gained / (self.price * spent)
        return score

    def why(self, curve: Curve) -> str:
        rate = self.price * self.score(curve)[-1]
        many = self._looks_back(curve)[-1]
        gain = "the last gain was" if many == 1 else f"the best of the last {many} points gained"
        return f"{gain} {rate:.3g} per unit of cost, below its price of {self.price:g}"

    def _looks_back(self, curve: Curve) -> Integers:
        """How many points before each its loss is compared with: one, or the window; shape [n]."""
        loss, spent = curve.loss, np.diff(curve.cost)
        with np.errstate(invalid="ignore"):
            rate = -np.diff(loss) / spent
            rounding = _ROUNDING * np.abs(loss[1:]) / spent
            is_steady = (rate >= -rounding) & np.isfinite(rate)
            is_steady[1:] &= rate[1:] <= rate[:-1] + rounding[1:]
        num_unsteady = np.concatenate(([0], np.cumsum(~is_steady)))  # before each point
        begin = np.maximum(np.arange(len(loss)) - _LATELY, 0)
        return np.where(num_unsteady > num_unsteady[begin], self.window, 1)


CURVE_RULES = {"windowed-improvement": WindowedImprovementRule}
