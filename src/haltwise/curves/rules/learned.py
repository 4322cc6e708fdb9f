"""This package's own forecast of success, learned on the runs at hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

import numpy as np

from haltwise._core.errors import require
from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.features import curve_features
from haltwise.curves.forecast import Forecast
from haltwise.curves.learning import rows_of
from haltwise.curves.model import per_cost
from haltwise.curves.rule import CurveRule

__all__ = ["ForecastRule"]


@final
@dataclass(frozen=True, eq=False)
class ForecastRule(CurveRule):
    """The score is that of a `CurveModel`: the chance of success per unit of the cost to come."""

    forecast: Forecast | None = field(default=None, repr=False)

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        """None to stop early: a chance of success says nothing of what a point is worth."""
        return [cls()] if price is None else []

    def fit(self, curves: Curves) -> Self:
        return replace(self, forecast=Forecast.fit(rows_of(curves, seed=0), seed=0))

    def score(self, curve: Curve) -> Floats:
        return per_cost(curve, self._chance([curve])[0])

    def scores(self, curves: Curves) -> list[Floats]:
        chances = self._chance(list(curves))
        return [per_cost(*pair) for pair in zip(curves, chances, strict=True)]

    def _chance(self, curves: Sequence[Curve]) -> list[Floats]:
        require(
            self.forecast is not None, "this rule has learned nothing yet; call fit(curves) first"
        )
        assert self.forecast is not None
        found = self.forecast.chance(np.concatenate([curve_features(curve) for curve in curves]))
        return np.split(found, np.cumsum([curve.num_points for curve in curves])[:-1])


CURVE_RULES = {"learned": ForecastRule}
