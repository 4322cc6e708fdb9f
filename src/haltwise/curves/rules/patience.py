"""Stop a run whose best loss has not fallen for a while (early stopping)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

import numpy as np

from haltwise.curves.curves import Curve, Floats, Integers
from haltwise.curves.progress import best_so_far, first_known, share_spent
from haltwise.curves.rule import CurveRule

__all__ = ["PatienceRule"]


@final
@dataclass(frozen=True)
class PatienceRule(CurveRule):
    """The score is how long ago the loss fell below all before, negative.

    Sources: Prechelt 1998, "Early stopping, but when?"; `EarlyStopping` of Keras and Lightning.
    """

    highest_score: ClassVar[float] = 0.0

    wait: Literal["points", "budget"] = "points"
    """Whether waiting is counted in points or in shares of the budget."""
    tolerance: float = 0.0
    """What counts as a fall, as a share of all that the run has gained so far."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        waits: tuple[Literal["points", "budget"], ...] = ("points", "budget")
        return [cls(wait, tolerance) for wait in waits for tolerance in (0.0, 0.003, 0.01, 0.03)]

    def score(self, curve: Curve) -> Floats:
        loss, num = curve.loss, curve.num_points
        clock = share_spent(curve) if self.wait == "budget" else np.arange(num, dtype=float)
        before = np.concatenate([[np.inf], best_so_far(loss)])[:-1]
        falls = np.flatnonzero(loss < before)
        if self.tolerance:
            falls = self._large(falls, loss)
        since = np.zeros(num, dtype=int)  # as of each point, where the last fall was
        since[falls] = falls
        score: Floats = clock[np.maximum.accumulate(since)] - clock
        return score

    def last_score(self, curve: Curve) -> float:
        if self.tolerance:
            return super().last_score(curve)
        lowest = curve.lowest()  # of equals the first
        fell = 0 if lowest == np.inf else int((curve.loss == lowest).argmax())
        if self.wait == "points":
            return float(fell - curve.num_points + 1)
        spent = share_spent(curve._replace(cost=curve.cost[[fell, -1]]))
        return float(spent[0] - spent[1])

    def _large(self, falls: Integers, loss: Floats) -> Integers:
        """Those of the points below all before at which it fell far enough below the last such."""
        start, best, found = first_known(loss), np.inf, []
        for point in falls:
            gained = max(start[point] - best, 0.0) if np.isfinite(best) else 0.0
            if loss[point] < best - self.tolerance * gained:
                best = loss[point]
                found.append(point)
        return np.array(found, dtype=int)


CURVE_RULES = {"patience": PatienceRule}
