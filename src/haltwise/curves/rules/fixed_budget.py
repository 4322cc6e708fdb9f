"""Stop every run at the same share of its budget."""

from dataclasses import dataclass
from typing import ClassVar, final

from haltwise.curves.curves import Curve, Floats
from haltwise.curves.progress import share_spent
from haltwise.curves.rule import CurveRule

__all__ = ["BudgetRule"]


@final
@dataclass(frozen=True)
class BudgetRule(CurveRule):
    """What everyone does who has no rule: the score is the share of the budget, negative."""

    highest_score: ClassVar[float] = 0.0

    def score(self, curve: Curve) -> Floats:
        return -share_spent(curve)


CURVE_RULES = {"fixed-budget": BudgetRule}
