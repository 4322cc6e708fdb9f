"""A logistic regression on all features."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, final

import numpy as np

from haltwise._core.extras import extra
from haltwise.curves.curves import Curves
from haltwise.curves.rules.learners import LearnedCurveRule, filled, training_points

__all__ = ["LogisticCurveRule"]


@final
@dataclass(frozen=True, eq=False)
class LogisticCurveRule(LearnedCurveRule):
    """The score is the logit that the target will be met or that going on is worth its price."""

    missing: ClassVar[float] = 0.0

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    strength: float = 1.0
    """Inverse of the strength of the ridge."""
    model: Any = field(default=None, repr=False)

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(price, strength) for strength in (0.003, 1.0)]

    def fit(self, curves: Curves) -> Self:
        with extra("learn"):
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

        rows = training_points(curves, self.price)
        if len(np.unique(rows.worth_going_on)) == 1:
            return replace(self, model=float(rows.worth_going_on[0]))
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=self.strength, max_iter=300, tol=1e-3)
        )
        return replace(
            self, model=model.fit(filled(rows.inputs, self.missing), rows.worth_going_on)
        )


CURVE_RULES = {"logistic": LogisticCurveRule}
