"""Give a run up whose best loss lags behind the time that it has spent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

from haltwise.curves.curves import Curve, Floats
from haltwise.curves.progress import best_so_far, relative, share_spent
from haltwise.curves.rule import CurveRule

__all__ = ["BestSoFarRule"]


@final
@dataclass(frozen=True)
class BestSoFarRule(CurveRule):
    """The score is how far the best loss is ahead of a line from the start to the target."""

    power: float = 1.0
    """Of the share of the budget that is left: 1 is a straight line, 0 asks for the same at all
    times."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(power) for power in (0.0, 0.5, 1.0, 2.0, 4.0)]

    def score(self, curve: Curve) -> Floats:
        left = (1 - share_spent(curve)).clip(0, 1)
        line: Floats = left**self.power - best_so_far(relative(curve))
        return line


CURVE_RULES = {"best-so-far": BestSoFarRule}
