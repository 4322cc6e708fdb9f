"""Stop a run whose improvements, over as long as its noise asks for, are not worth their price."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np

from haltwise._core.settings import price_per_unit, whole_number
from haltwise.curves.curves import Curve, Floats, Integers
from haltwise.curves.progress import best_so_far
from haltwise.curves.rule import CurveRule

__all__ = ["WindowedImprovementRule"]

_LATELY = 5  # improvements, which noise puts in falling order once in 120 times
_ROUNDING = 1e-12  # of a loss: of falls that differ by less, neither is the larger


@final
@dataclass(frozen=True)
class WindowedImprovementRule(CurveRule):
    """Stop at the first improvement not worth its price; where noise hides it, at a window of them.

    With b_t the lowest loss until point t, C_t the cost spent and c the price, the score is
    (b_{t-m} - b_t) / (c (C_t - C_{t-m})), infinite for t < m. A loss whose last five improvements
    per unit of cost only shrank, and were above 0, is taken at its word: m = 1, as
    `UntunedImprovementRule` has it. Otherwise one improvement tells little, and m is the window. So
    it is where a loss stands still: it may have converged, but may as well be the best of a search
    or a count, which moves in steps with pauses between them.

    Raises:
        InputError: The price is not a finite number above 0, or the window no number of points.

    Examples:
        A steady fall ends at the first gain below the price; a rise alone ends nothing.

        >>> steady = Curve(np.arange(4.0), {"loss": np.array([4, 3, 2.5, 2.45])}, "loss", "min")
        >>> WindowedImprovementRule(0.1).score(steady).round(1).tolist()
        [inf, 10.0, 5.0, 0.5]
        >>> steps = steady._replace(columns={"loss": np.array([4.0, 3, 3, 3])})
        >>> WindowedImprovementRule(0.1, window=3).score(steps).round(1).tolist()
        [inf, 10.0, inf, 3.3]
        >>> noisy = steady._replace(columns={"loss": np.array([4, 3, 3.2, 2.5])})
        >>> WindowedImprovementRule(0.1, window=2).score(noisy).round(1).tolist()
        [inf, 10.0, 5.0, 2.5]
    """

    price: float
    """What a unit of cost must gain, in units of the metric."""
    window: int = 20
    """m where the loss is not steady, in points; a run is then seen for so many more at most."""

    def __post_init__(self) -> None:
        price_per_unit(self.price)
        object.__setattr__(self, "window", whole_number("window", self.window))

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

    def last_score(self, curve: Curve) -> float:
        num = curve.num_points
        back = int(self._looks_back(curve.since(num - _LATELY - 2))[-1])
        if num <= back:
            return np.inf
        before = curve.lowest(num - back)
        now = min(before, curve.since(num - back).lowest())
        gained = 0.0 if now == before else before - now  # inf to inf: none
        return gained / (self.price * float(curve.cost[-1] - curve.cost[-1 - back]))

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
            is_steady = (rate > rounding) & np.isfinite(rate)
            is_steady[1:] &= rate[1:] <= rate[:-1] + rounding[1:]
        num_unsteady = np.concatenate(([0], np.cumsum(~is_steady)))  # before each point
        begin = np.maximum(np.arange(len(loss)) - _LATELY, 0)
        return np.where(num_unsteady > num_unsteady[begin], self.window, 1)


CURVE_RULES = {"windowed-improvement": WindowedImprovementRule}
