"""A domain under a question: what rules are shown, and what their stops are charged."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import numpy as np

from haltwise._core.checksum import checksum
from haltwise._core.errors import require
from haltwise.bench.domain import Domain, Question
from haltwise.curves.budgets import shares_to_try, stops_at_shares
from haltwise.curves.curves import Booleans, Curves, Floats, Integers, points_of
from haltwise.curves.progress import best_so_far

__all__ = [
    "PRICES",
    "Case",
    "give_up_case",
    "make_case",
    "stop_case",
    "typical_gains",
]

PRICES = (0.03, 0.1, 0.3)
"""Of a whole budget, in typical gains of a run of the same task."""

_AIM = 2.0  # typical gains from the start to what features take for a target where there is none


@final
@dataclass(frozen=True, eq=False)
class Case:
    """n runs as rules see them, with what a stop at each point is charged."""

    question: Question
    shown: Curves
    """What rules see: where they stop early, losses in typical gains, costs in budgets."""
    num_left_out: int
    """Runs that cannot be judged."""
    loss: Floats
    """What a stop at each point returns, shape [P]; NaN where runs are given up."""
    prices: tuple[float, ...] = ()

    @property
    def digest(self) -> str:
        """A checksum of all that rules see and are charged for."""
        return checksum((self.shown, self.loss, self.prices))

    def select(self, index: Integers) -> "Case":
        """The runs at `index`, int64 [k]."""
        loss = self.loss[points_of(self.shown, index)]
        return replace(self, shown=self.shown.select(index), loss=loss)

    def stopped(self, stops: Integers) -> Integers:
        """The point at which each run ends, by the first at which a rule stops it; both [n, L].

        A run that no rule stops ends by itself, at its last point.
        """
        found: Integers = np.minimum(stops, self.shown.num_points[:, None] - 1)
        return found

    def charges(self, stops: Integers, price: float) -> Floats:
        """Loss returned and price paid of stops at points [n, L]; shape [n, L]."""
        at = self.shown.offset[:-1, None] + self.stopped(stops)
        charged: Floats = self.loss[at] + price * self.shown.cost[at]
        return charged

    def fixed(self, price: float) -> Floats:
        """Charges of budgets alike for all runs, the best in hindsight among them; [n, budgets]."""
        shares = shares_to_try(self.shown, self.loss + price * self.shown.cost)
        return self.charges(stops_at_shares(self.shown, shares), price)

    def oracle(self, price: float) -> Floats:
        """The least charge of each run, its future known, shape [n]."""
        every = self.loss + price * self.shown.cost
        least: Floats = np.minimum.reduceat(every, self.shown.offset[:-1])
        return least


def make_case(
    domain: Domain, question: Question, curves: Curves, prices: tuple[float, ...] = PRICES
) -> Case:
    """Show a domain's runs as a question asks, at these prices if it has none of its own."""
    if question is Question.GIVE_UP:
        return give_up_case(curves, domain.scored)
    return stop_case(curves, domain.scored, domain.prices(curves) or prices, domain.unit(curves))


def give_up_case(curves: Curves, hidden: str | None = None) -> Case:
    """Ask whether runs will meet their targets.

    Args:
        curves: Runs with targets; those without one are left out.
        hidden: A column that no rule sees.
    """
    kept = np.flatnonzero(np.isfinite(curves.target) & (curves.num_points >= 2))
    require(len(kept) > 0, "no run has a target and two points; there is nothing to give up")
    shown = _without(curves.select(kept), hidden)
    return Case(
        Question.GIVE_UP,
        shown,
        curves.num_runs - len(kept),
        np.full(len(shown.cost), np.nan),
    )


def stop_case(
    curves: Curves,
    scored: str | None = None,
    prices: tuple[float, ...] = PRICES,
    unit: float | None = None,
) -> Case:
    """Ask when going on does not pay.

    What counts is the loss returned, that of the best point so far by the metric, and price x cost.
    Losses are shown in typical gains, the median over the runs of a task of what they gain in all,
    and costs in budgets: the price of a budget is then one number for tasks of any units. As a
    target, which features need, two typical gains are shown; meeting it ends nothing. Runs whose
    first loss is not finite, and tasks that gain nothing, are left out.

    Args:
        curves: Runs.
        scored: The column by which what is returned is judged; the metric if None.
        prices: Of a budget, in typical gains.
        unit: What losses are counted in, if it is not the typical gain.
    """
    observed = np.concatenate([curve.loss for curve in curves])
    score = observed
    if scored is not None and scored != curves.metric:
        sign = -1.0 if curves.direction == "max" else 1.0
        score = sign * curves.values[:, curves.columns.index(scored)]
    first = curves.offset[:-1]
    usable = np.isfinite(observed[first]) & np.isfinite(score[first]) & (curves.num_points >= 2)
    usable &= curves.budget > 0
    scale = typical_gains(curves, usable) if unit is None else np.full(curves.num_runs, unit)
    kept = np.flatnonzero(usable & (scale > 0))
    require(
        len(kept) > 0,
        "no run can be stopped early: each lacks a finite first loss, two points or any gain",
    )
    chosen, points = curves.select(kept), points_of(curves, kept)
    observed, score = observed[points], score[points]
    run = np.repeat(np.arange(len(kept)), chosen.num_points)
    units = scale[kept][run]
    shown = _without(chosen, scored)
    values = shown.values.copy()
    values[:, shown.columns.index(shown.metric)] = observed / units
    returned = [_returned(observed[a:b], score[a:b]) for a, b in pairwise(chosen.offset)]
    shown = replace(
        shown,
        cost=shown.cost / shown.budget[run],
        values=values,
        direction="min",
        target=values[shown.offset[:-1], shown.columns.index(shown.metric)] - _AIM,
        budget=np.ones(len(kept)),
        cost_unit="budgets",
    )
    return Case(
        Question.STOP, shown, curves.num_runs - len(kept), np.concatenate(returned) / units, prices
    )


def typical_gains(curves: Curves, usable: Booleans) -> Floats:
    """The median over the usable runs of each run's task of what they gain in all, shape [n]."""
    gains = np.full(curves.num_runs, np.nan)
    for i in np.flatnonzero(usable):
        loss = curves[int(i)].loss
        gains[i] = loss[0] - np.nanmin(loss)
    scale = np.full(curves.num_runs, np.nan)
    for task in np.unique(curves.task[usable]):
        mine = curves.task == task
        scale[mine] = np.median(gains[mine & usable])
    return scale


def _returned(observed: Floats, score: Floats) -> Floats:
    """The score of the best point so far by the observed loss, the last known where it is NaN."""
    best = best_so_far(observed)
    improved = observed == best
    improved[1:] &= best[1:] < best[:-1]
    point = np.maximum.accumulate(np.where(improved & np.isfinite(score), np.arange(len(best)), 0))
    return score[point]


def _without(curves: Curves, column: str | None) -> Curves:
    """The same without a column that no rule may see."""
    if column is None or column == curves.metric or column not in curves.columns:
        return curves
    kept = [place for place, name in enumerate(curves.columns) if name != column]
    return replace(
        curves,
        columns=tuple(curves.columns[place] for place in kept),
        values=curves.values[:, kept],
    )
