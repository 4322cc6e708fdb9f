"""This package's own forecast, learned on the runs at hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

import numpy as np

from haltwise._core.errors import require
from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.forecast import Forecast, Rows
from haltwise.curves.learning import rows_of
from haltwise.curves.model import not_early, per_cost
from haltwise.curves.progress import best_so_far
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.learners import budget_of, input_table, inputs, training_points

__all__ = ["ForecastRule"]

_CLEAR, _LEAST = 3.0, 1e-6  # of what is at stake at a point, in prices of the budget


@final
@dataclass(frozen=True, eq=False)
class ForecastRule(CurveRule):
    """The score is a forecast by boosted trees (`haltwise.curves.forecast.Forecast`).

    Where runs are given up it is that of a `CurveModel`, the chance of success per unit of the cost
    to come. Where they stop early it is the chance that some later point is worth its cost; points
    count by how much is at stake there, so that the chance is above one half where more is gained
    than lost by going on.
    """

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    model: Forecast | float | None = field(default=None, repr=False)
    """What was learned; a number where all points were alike."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(price)]

    def fit(self, curves: Curves) -> Self:
        rows = rows_of(curves, seed=0) if self.price is None else _stakes(curves, self.price)
        if self.price is not None and len(np.unique(rows.success)) == 1:
            return replace(self, model=float(rows.success[0]))
        return replace(self, model=Forecast.fit(rows, seed=0))

    def score(self, curve: Curve) -> Floats:
        table = inputs(curve, self.price)
        return self._scores([curve], table)[0]

    def last_score(self, curve: Curve) -> float:
        now = curve._replace(cost=curve.cost[-1:])
        return float(self._scores([now], inputs(curve, self.price, last=1))[0][0])

    def scores(self, curves: Curves) -> list[Floats]:
        return self._scores(list(curves), input_table(curves, self.price))

    def _scores(self, curves: Sequence[Curve], table: Floats) -> list[Floats]:
        require(self.model is not None, "this rule has learned nothing yet; call fit(curves) first")
        found = (
            self.model.chance(table)
            if isinstance(self.model, Forecast)
            else np.full(len(table), self.model)
        )
        chances = np.split(found, np.cumsum([curve.num_points for curve in curves])[:-1])
        if self.price is not None:
            return [not_early(*pair) for pair in zip(curves, chances, strict=True)]
        return [per_cost(*pair) for pair in zip(curves, chances, strict=True)]


def _stakes(curves: Curves, price: float) -> Rows:
    """Points of runs, each with whether going on was worth its cost, and how much was at stake."""
    points = training_points(curves, price)
    whole = np.array([budget_of(curve) for curve in curves])[points.run]
    stakes = [_stake(curve, price) for curve in curves]
    weight = np.array(
        [stakes[run][point] for run, point in zip(points.run, points.point, strict=True)]
    )
    weight = np.minimum(weight / (price * whole), _CLEAR) + _LEAST
    going_on = points.worth_going_on.astype(bool)
    return Rows(points.inputs, going_on, weight, points.run, np.zeros(len(weight), bool))


def _stake(curve: Curve, price: float) -> Floats:
    """What going on gains or loses at each point if the best of all later points is taken, [n]."""
    stop = best_so_far(curve.loss) + price * curve.cost
    later = np.append(np.minimum.accumulate(stop[::-1])[::-1][1:], stop[-1])
    with np.errstate(invalid="ignore"):
        stake: Floats = np.nan_to_num(np.abs(stop - later), nan=0.0)
    return stake


CURVE_RULES = {"learned": ForecastRule}
