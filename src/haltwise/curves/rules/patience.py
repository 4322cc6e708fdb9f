"""Stop a run whose best loss has not fallen for a while (early stopping)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

import numpy as np

from haltwise.curves.curves import Curve, Floats
from haltwise.curves.progress import first_known, share_spent
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
        loss, start = curve.loss, first_known(curve.loss)
        clock = share_spent(curve) if self.wait == "budget" else np.arange(len(loss), dtype=float)
        score = np.zeros(len(loss))
        best, since = np.inf, clock[0] if len(clock) else 0.0
        for point, value in enumerate(loss):
            gained = max(start[point] - best, 0.0) if np.isfinite(best) else 0.0
            if value < best - self.tolerance * gained:
                best, since = value, clock[point]
            score[point] = since - clock[point]
        return score


CURVE_RULES = {"patience": PatienceRule}
