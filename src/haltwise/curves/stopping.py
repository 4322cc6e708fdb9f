"""Learn from few recorded runs when to stop one early: what is learned, or a rule of one line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from haltwise._core.arrays import real_numbers
from haltwise._core.errors import DataWarning, require, warn
from haltwise._core.settings import price_per_unit
from haltwise.curves.copies import marks_of_runs
from haltwise.curves.curves import Curve, Curves, Floats, Integers
from haltwise.curves.features import shares_beside
from haltwise.curves.learning import folds_of
from haltwise.curves.levels import quantile_levels, scores_in_use, stops_below
from haltwise.curves.model import cost_scale, not_early
from haltwise.curves.progress import best_so_far
from haltwise.curves.rule import CurveRule, cross_fitted
from haltwise.curves.rules.last_improvement import LastImprovementRule
from haltwise.curves.rules.learned import ForecastRule
from haltwise.curves.rules.learners import with_inputs
from haltwise.curves.stop_model import StopCard, StopModel

__all__ = ["LearnedStop", "judgeable", "learn_to_stop", "stops_of", "worth_of"]

_FOLDS = 3
_FEWEST = 20  # runs
_NEEDED = "two points, a budget above 0 and a finite first loss"
_MARGIN = 0.5  # standard errors within which the level that stops latest is taken
_TAKES_OVER = 1.0  # standard errors by which the rule of one line must be ahead


@final
@dataclass(frozen=True)
class NotEarly(CurveRule):
    """A rule that stops nothing before a twentieth of the budget is spent."""

    rule: LastImprovementRule

    def score(self, curve: Curve) -> Floats:
        return not_early(curve, self.rule.score(curve))


@final
class LearnedStop(NamedTuple):
    """A model that stops runs early, and what it made of those it was learned on, unseen.

    Attributes:
        model: The model, fitted to all runs.
        curves: The runs it was learned on.
        worth: What a stop at each point is worth, in units of the metric and lower is better, [P].
        stops: The point at which each run is stopped by a rule that has not seen its group; its
            last where it is not, int64 [n]. The level was chosen by them.
    """

    model: StopModel
    curves: Curves
    worth: Floats
    stops: Integers


def learn_to_stop(
    curves: Curves,
    price: float,
    *,
    returned: npt.ArrayLike | None = None,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> LearnedStop:
    """Learn when another step of a loop is not worth its price, from some dozens of its runs.

    Boosted trees learn at which points some later one was worth its cost. On folds of groups
    that they have not seen, a level is chosen that costs least; of those that are as good within
    half a standard error, the one that stops latest, for a stop far too early costs most. Where the
    mean of the last improvements is better there by more than a standard error, it takes over, and
    where neither beats going on to the end, nothing is ever stopped.

    Args:
        curves: Recorded runs, each longer than it should be.
        price: What a unit of cost must gain, in units of the metric.
        returned: What a stop at each point is worth, in units of the metric and lower is better,
            shape [P]; the best metric so far if None. Such as a loss on test data.
        seed: Of the folds.
        provenance: What the card shall remember, for people.

    Raises:
        InputError: There are too few runs, the price is impossible, or what is returned is not
            finite.

    Warns:
        DataWarning: There is but one group, runs were left out, or runs are copies of others.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> speeds = rng.uniform(0.05, 0.5, (40, 1))
        >>> losses = np.exp(-speeds * np.arange(40)) + 0.01 * rng.standard_normal((40, 40))
        >>> found = learn_to_stop(Curves.from_matrix(losses, group=["a", "b"] * 20), price=0.01)
        >>> found.model.card.saved > 2 * found.model.card.standard_error
        True
    """
    price = price_per_unit(price)
    curves, worth = judgeable(curves.with_budgets(), worth_of(curves, returned))
    require(
        curves.num_runs >= _FEWEST,
        f"{curves.num_runs} runs have {_NEEDED}; record at least {_FEWEST} such",
    )
    read = with_inputs(curves, price)
    fold = folds_of(curves, seed, _FOLDS)
    bills = worth + price * curves.cost
    rules: list[ForecastRule | NotEarly] = [ForecastRule(price)]
    rules += map(NotEarly, LastImprovementRule.candidates(price))
    learned, *simple = (_try(rule, read, bills, fold) for rule in rules)
    ends = curves.num_points - 1
    never = learned._replace(level=-np.inf, stops=ends, charges=bills[curves.offset[:-1] + ends])
    best = min(never, learned, key=_mean)
    other = min(simple, key=_mean)
    ahead = best.charges - other.charges
    if ahead.mean() > _TAKES_OVER * _error(ahead):
        best = other
    saved = never.charges - best.charges
    rule = best.rule.rule if isinstance(best.rule, NotEarly) else best.rule.fit(read)
    card = StopCard(
        metric=curves.metric,
        cost_unit=curves.cost_unit,
        price=price,
        budget=cost_scale(curves),
        level=best.level if math.isfinite(best.level) else None,
        direction=curves.direction,
        saved=float(saved.mean()),
        standard_error=_error(saved),
        beside=shares_beside(curves) if isinstance(rule, ForecastRule) else {},
        num_runs=curves.num_runs,
        num_groups=len(np.unique(curves.group)),
        seen=marks_of_runs(curves),
        provenance=provenance or {},
    )
    return LearnedStop(StopModel(rule, card), curves, worth, best.stops)


def worth_of(curves: Curves, returned: npt.ArrayLike | None = None) -> Floats:
    """What a stop at each point is worth, [P]: what it returns, or else the best metric so far.

    Raises:
        InputError: There is not one finite number for each point.
    """
    if returned is None:
        return np.concatenate([best_so_far(curve.loss) for curve in curves])
    worth = real_numbers(returned, "returned", f"give one for each of {len(curves.cost)} points")
    require(
        worth.shape == curves.cost.shape,
        f"returned must be one number for each of {len(curves.cost)} points, got shape "
        f"{list(worth.shape)}",
    )
    wrong = np.flatnonzero(~np.isfinite(worth))
    require(  # a mean over runs would not be finite either, and neither would the card
        len(wrong) == 0,
        f"returned must be finite, got {worth[wrong[:1]]} at point {wrong[:1]}; where a loss "
        "diverged, give the worst that counts",
    )
    return worth


def stops_of(scores: Sequence[Floats], levels: Floats, curves: Curves) -> Integers:
    """The points at which runs end at each level, their last where they are not stopped, [n, L]."""
    ends: Integers = np.minimum(stops_below(scores, levels), curves.num_points[:, None] - 1)
    return ends


class _Tried(NamedTuple):
    """A rule at its level, and where runs stopped by it while their fold was held out.

    Attributes:
        rule: The rule, not fitted.
        level: Chosen by the stops below.
        stops: Shape [n].
        charges: What these cost, shape [n].
    """

    rule: ForecastRule | NotEarly
    level: float
    stops: Integers
    charges: Floats


def _try(rule: ForecastRule | NotEarly, curves: Curves, bills: Floats, fold: Integers) -> _Tried:
    """Choose the level on scores of a rule that has not seen the fold of a run."""
    scores = scores_in_use(cross_fitted(rule, curves, fold))
    levels = quantile_levels(scores)
    stops = stops_of(scores, levels, curves)
    charges = bills[curves.offset[:-1, None] + stops]
    behind = charges - charges[:, [charges.mean(0).argmin()]]
    good = behind.mean(0) <= _MARGIN * behind.std(0, ddof=1) / np.sqrt(len(behind))
    place = int(np.flatnonzero(good)[0])
    return _Tried(rule, float(levels[place]), stops[:, place], charges[:, place])


def judgeable(curves: Curves, worth: Floats) -> tuple[Curves, Floats]:
    """The runs that have two points, a budget above 0 and a finite first loss.

    Of all runs only the points count that measured the metric: elsewhere nothing new is known of
    what a stop returns. Beside them comes what these are worth, [P]. Targets are dropped, which a
    monitor that stops runs early is not told either.

    Raises:
        InputError: No run has.

    Warns:
        DataWarning: Some have not.
    """
    worth = worth[curves.is_measured]
    curves = curves.measured().with_targets(np.nan)
    kept = np.isfinite(worth[curves.offset[:-1]]) & (curves.num_points > 1) & (curves.budget > 0)
    require(bool(kept.any()), f"no run has {_NEEDED}; record others")
    if not kept.all():
        warn(
            f"{int((~kept).sum())} of {curves.num_runs} runs are left out: they have one point or "
            "a budget of 0, or their first loss is not finite",
            DataWarning,
        )
    return curves.select(kept), worth[np.repeat(kept, curves.num_points)]


def _mean(tried: _Tried) -> float:
    return float(tried.charges.mean())


def _error(values: Floats) -> float:
    """The standard error of a mean over runs."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))
