"""Stop a run whose best loss hardly fell over the last part of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np

from haltwise.curves.curves import Curve, Floats
from haltwise.curves.progress import best_so_far, first_known
from haltwise.curves.rule import CurveRule

__all__ = ["PlateauRule"]


@final
@dataclass(frozen=True)
class PlateauRule(CurveRule):
    """The score is the share of all that was gained which fell into the last part of the run."""

    part: float = 0.3
    """The part of the cost so far that is the last."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(part) for part in (0.1, 0.2, 0.3, 0.5)]

    def score(self, curve: Curve) -> Floats:
        best, start = best_so_far(curve.loss), first_known(curve.loss)
        # The last point whose cost is at most that of where the last part begins.
        begins = curve.cost * (1 - self.part) + self.part * curve.cost[:1]
        before = np.searchsorted(curve.cost, begins, side="right") - 1
        gained = start - best
        with np.errstate(invalid="ignore", divide="ignore"):
            lately = (best[before] - best) / gained
        # Nothing is known at the first point, and a run that gained nothing stands still.
        lately = np.where(gained > 0, lately, 0.0)
        lately[:1] = 1.0
        return lately


CURVE_RULES = {"plateau": PlateauRule}
