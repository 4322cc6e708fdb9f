"""A rule on curves with the level below which a run is given up."""

import inspect
import math
from pathlib import Path
from typing import final

import numpy as np

from haltwise._core.errors import CalibrationWarning, require, warn
from haltwise._core.settings import real_number, shown, whole_number
from haltwise.certificates import Certificate
from haltwise.curves.curves import Curve, Curves
from haltwise.curves.levels import MIN_POINTS
from haltwise.curves.model import CurveModel
from haltwise.curves.rule import CurveRule
from haltwise.curves.shipped import load_curve_rule
from haltwise.curves.stop_model import StopModel

__all__ = ["LevelledRule"]

_FAR = 2.0  # times the budgets that were certified
_LOST = 0.01  # share of successes, unless told otherwise


@final
class LevelledRule:
    """A rule, and when its score is low enough to give a run up.

    Args:
        rule: The rule, or what `haltwise.curves.shipped.load_curve_rule` takes: the name or path
            of a learned one.
        level: A run is given up at the first point whose score lies below; a certificate of this
            rule stands for the level that it certifies. A learned rule has levels of its own, for a
            price or for successes lost.
        price: (value of a unit of cost) / (value of a success), for a learned rule.
        lost: Share of the successes that may be lost, for a learned rule, which remembers levels
            for some; .01 if nothing is given.
        cost_unit: What cost is counted in. Unless it is the unit of the learned rule's card, levels
            for successes lost are translated by the run's budget.
        min_points: A run of fewer points is not given up.

    Raises:
        InputError: There is no such rule, no level for it, or the certificate is of another, or of
            another unit of cost.
    """

    def __init__(
        self,
        rule: CurveRule | str | Path,
        *,
        level: float | Certificate | None = None,
        price: float | None = None,
        lost: float | None = None,
        cost_unit: str | None = None,
        min_points: int = MIN_POINTS,
    ) -> None:
        found: object = load_curve_rule(rule) if isinstance(rule, str | Path) else rule
        require(
            isinstance(found, CurveRule),
            f"{shown(rule)} is no rule on curves; give a haltwise.curves.rule.CurveRule or the "
            "name of a learned one",
        )
        assert isinstance(found, CurveRule)
        self.rule = found
        self._name: str | None = None  # it is made of all that the rule has learned
        if isinstance(found, StopModel):
            found.require_unit(cost_unit)
            require(
                price is None and lost is None,
                f"this model was learned at a price of {found.card.price:g}, at which it stops "
                "runs; leave price and lost out, or learn at another price",
            )
        self._budgets: tuple[float, float] | None = None  # that a certificate speaks for
        if isinstance(level, Certificate):
            self._budgets = level.budgets
            level = _certified(found, level, cost_unit)
        self.min_points = whole_number("min_points", min_points)
        self._cost_unit = cost_unit
        asked = {"a level": level, "a price": price, "successes lost": lost}
        given = [name for name, value in asked.items() if value is not None]
        count = "both" if len(given) == 2 else "all three"
        require(len(given) <= 1, f"give {' or '.join(given)}, not {count}")
        self._level, self._price, self._lost = (
            None if value is None else real_number(name, value) for name, value in asked.items()
        )
        require(
            self._level is None or not math.isnan(self._level),
            "the level is NaN; give a number, or -inf to give nothing up",
        )
        require(
            self._level is None or self._level <= found.highest_score,
            f"a level of {self._level} would end every run at once, for the scores of "
            f"{type(found).__name__} are at most {found.highest_score:g}: "
            f"{(inspect.getdoc(found) or '').partition(chr(10))[0]}",
        )
        if not given and found.fixed_level is not None:
            self._level = found.fixed_level
        elif not isinstance(found, CurveModel):
            require(
                self._level is not None,
                f"{type(found).__name__} is not a learned model, which has levels of its own; give "
                "the level below which a run is given up",
            )
        elif not given:
            self._lost = _LOST
        self.level(1.0)  # refuses what it does not know

    @property
    def is_learned(self) -> bool:
        """Whether the rule is a learned model, which tells nothing of a run without a target."""
        return isinstance(self.rule, CurveModel)

    def known_until(self, budget: float) -> float:
        """The cost beyond which what was learned says nothing of a run of this budget."""
        if isinstance(self.rule, StopModel) and math.isnan(budget):
            return self.rule.card.budget
        return budget if isinstance(self.rule, CurveModel | StopModel) else math.inf

    def level(self, budget: float) -> float:
        """The level for a run of this budget."""
        if self._level is not None:
            return self._level
        model = self.rule
        assert isinstance(model, CurveModel)
        own_unit = self._cost_unit == model.card.cost_unit
        scale = None if own_unit or self._lost is None else budget
        return model.level(lost=self._lost, price=self._price, scale=scale)

    @property
    def settings(self) -> dict[str, float | str | None]:
        """What tells it from others."""
        self._name = self._name or _name_of(self.rule)
        return {
            "rule": self._name,
            "level": None if self._level is None else f"{self._level:.17g}",  # it may be infinite
            "price": self._price,
            "lost": self._lost,
            "cost_unit": self._cost_unit,
            "min_points": self.min_points,
        }

    def learn(self, curves: Curves) -> None:
        """Let the rule learn from recorded runs; the level stays."""
        self.rule, self._name = self.rule.fit(curves), None

    def gives_up(self, curve: Curve, start: int = 0) -> int | None:
        """The first point, from number `start` on, at which the run is given up.

        A run that has met its target is not given up afterwards.

        Warns:
            CalibrationWarning: Its budget lies far outside those that the certificate speaks for.
        """
        self._compare(curve.budget)
        start = max(start, self.min_points - 1)
        end = curve.success if curve.success >= 0 else curve.num_points
        if start >= end:
            return None
        if start == curve.num_points - 1 and type(self.rule).last_score is not CurveRule.last_score:
            below_level = self.rule.last_score(curve) < self.level(curve.budget)
            return start if below_level else None
        scores = np.asarray(self.rule.score(curve), np.float64)
        require(
            scores.shape == curve.cost.shape,
            f"the scores of {type(self.rule).__name__} have shape {list(scores.shape)} on a curve "
            f"of {curve.num_points} points; it must give one for each",
        )
        below = np.flatnonzero(scores[start:end] < self.level(curve.budget))  # NaN is below nothing
        return start + int(below[0]) if len(below) else None

    def _compare(self, budget: float) -> None:
        """Say once where a budget is as if its unit were not that of the runs certified."""
        low, high = self._budgets or (0.0, math.inf)
        if low / _FAR <= budget <= high * _FAR or not math.isfinite(budget):
            return
        self._budgets = None
        warn(
            f"a run has a budget of {budget:g}, and those that were certified had {low:g} to "
            f"{high:g}: the certificate does not speak for it; count its cost in the unit of "
            "those, or certify runs like this one",
            CalibrationWarning,
        )


def _name_of(rule: CurveRule) -> str:
    """The class of a rule, its settings if it shows them, and what tells it from all others."""
    is_model = isinstance(rule, CurveModel | StopModel)
    hides = is_model or type(rule).__repr__ is object.__repr__
    return f"{type(rule).__name__ if hides else rule} {rule.digest}"


def _certified(rule: CurveRule, certificate: Certificate, cost_unit: str | None) -> float:
    """The level that is certified for this very rule, in this unit of cost if one is named."""
    require(
        certificate.score_level is not None,
        "this certificate is of a stop policy, not of a level at which runs are given up",
    )
    require(
        certificate.model == rule.digest,
        "the certificate is of another rule, or of this one when it had learned otherwise; "
        "certify this one with haltwise judge --certify",
    )
    unit = certificate.cost_unit
    require(
        cost_unit is None or unit is None or cost_unit == unit,
        f"the certificate is of runs whose cost is counted in {unit}, not in {cost_unit}; count it "
        f"in {unit}, or certify runs that do not (haltwise judge --certify)",
    )
    assert certificate.score_level is not None
    return certificate.score_level
