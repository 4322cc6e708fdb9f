"""Boosted trees on all features."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, final

import numpy as np

from haltwise._core.extras import extra
from haltwise.curves.curves import Curves
from haltwise.curves.rules.learners import LearnedCurveRule, filled, training_points

__all__ = ["BoostedTreesRule"]


@final
@dataclass(frozen=True, eq=False)
class BoostedTreesRule(LearnedCurveRule):
    """The score is the logit that the target will be met or that going on is worth its price."""

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    leaves: int = 15
    """Of a tree, at most."""
    model: Any = field(default=None, repr=False)

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(price, leaves) for leaves in (4, 15)]

    def fit(self, curves: Curves) -> Self:
        with extra("learn"):
            from sklearn.ensemble import HistGradientBoostingClassifier

        rows = training_points(curves, self.price)
        if len(np.unique(rows.worth_going_on)) == 1:
            return replace(self, model=float(rows.worth_going_on[0]))
        model = HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.15, max_leaf_nodes=self.leaves, l2_regularization=1.0,
            min_samples_leaf=int(np.clip(len(rows.run) // 200, 5, 60)), early_stopping=False,
            random_state=0,
        )  # fmt: skip
        return replace(
            self, model=model.fit(filled(rows.inputs, self.missing), rows.worth_going_on)
        )


CURVE_RULES = {"boosted-trees": BoostedTreesRule}
