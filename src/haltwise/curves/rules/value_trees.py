"""Trees that learn the value of going on, by regression and backward induction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, final

import numpy as np

from haltwise._core.extras import extra
from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.progress import best_so_far
from haltwise.curves.rules.learners import (
    LearnedCurveRule,
    budget_of,
    filled,
    training_points,
)

__all__ = ["ValueTreesRule", "bill", "cost_to_go"]

_ROUNDS = 2  # of backward induction, the policy improved before each
_CLEAR = 3.0  # budgets, beyond which a value is clear


def bill(curve: Curve, price: float | None, success_value: float) -> tuple[Floats, float]:
    """What a stop at each point costs, [n], and what going on beyond the last one does; budgets.

    Args:
        curve: A whole run.
        price: With one, a stop costs the best loss and the price of what was spent, and no run goes
            on beyond its last point. Without, it costs what was spent, and a run that meets its
            target there earns the value of a success.
        success_value: In budgets.
    """
    whole = budget_of(curve)
    if price is not None:
        loss = best_so_far(curve.loss) / (price * whole) + curve.cost / whole
        return loss, float(loss[-1])
    met = curve.success
    cost = curve.cost / whole
    if met >= 0:
        return cost[:met], float(cost[met] - success_value)
    return cost, float(cost[-1])


def cost_to_go(stop: Floats, end: float, going_on: Floats) -> Floats:
    """What going on from each point costs if the run then stops where `going_on` is below 0, [n].

    Examples:
        >>> cost_to_go(np.array([3.0, 2.0, 1.0]), 1.0, np.array([1.0, -1.0, 1.0])).tolist()
        [2.0, 1.0, 1.0]
    """
    later = np.empty(len(stop))
    value = end
    for point in range(len(stop) - 1, -1, -1):
        later[point] = value
        if going_on[point] < 0:
            value = stop[point]
    return later


@final
@dataclass(frozen=True, eq=False)
class ValueTreesRule(LearnedCurveRule):
    """The score is what going on saves over stopping, in budgets.

    Source: Longstaff and Schwartz 2001, with boosted trees in place of polynomials and one
    regression for all points in place of one a point.
    """

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    success_value: float = 4.0
    """What a success is worth, in budgets, where there is no price."""
    model: Any = field(default=None, repr=False)

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        if price is not None:
            return [cls(price)]
        return [cls(None, value) for value in (1.0, 8.0)]

    def fit(self, curves: Curves) -> Self:
        rows = training_points(curves, self.price)
        bills = [bill(curve, self.price, self.success_value) for curve in curves]
        model = None
        for _ in range(_ROUNDS + 1):
            # In the first round the future is known, in later ones the policy so far is followed.
            later = (
                [_hindsight(*each) for each in bills]
                if model is None
                else [
                    cost_to_go(stop, end, score[: len(stop)])
                    for (stop, end), score in zip(
                        bills, replace(self, model=model).scores(curves), strict=True
                    )
                ]
            )
            saved = np.array(
                [
                    bills[run][0][point] - later[run][point]
                    for run, point in zip(rows.run, rows.point, strict=True)
                ]
            )
            model = self._regress(rows.inputs, np.clip(np.nan_to_num(saved), -_CLEAR, _CLEAR))
        return replace(self, model=model)

    def _regress(self, table: Floats, saved: Floats) -> Any:
        with extra("learn"):
            from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(
            max_iter=60, learning_rate=0.15, max_leaf_nodes=15, l2_regularization=1.0,
            min_samples_leaf=int(np.clip(len(saved) // 200, 5, 60)), early_stopping=False,
            random_state=0,
        )  # fmt: skip
        return model.fit(filled(table, self.missing), saved)


def _hindsight(stop: Floats, end: float) -> Floats:
    """The least that going on from each point can cost, the future known."""
    return np.minimum.accumulate(np.append(stop[1:], end)[::-1])[::-1]


CURVE_RULES = {"value-trees": ValueTreesRule}
