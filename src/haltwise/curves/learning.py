"""Learn from recorded runs when to give a run up, and what that would have saved and lost."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np
import numpy.typing as npt

from haltwise._core.errors import DataWarning, require, warn
from haltwise._core.settings import one_of
from haltwise.curves.copies import marks_of_runs, warn_of_copied_runs
from haltwise.curves.curves import Curves, Floats, Integers
from haltwise.curves.features import FEATURES, curve_features, shares_beside
from haltwise.curves.folds import deal
from haltwise.curves.forecast import MOST_ROWS, Forecast, Rows
from haltwise.curves.levels import GiveUps, candidate_levels, level_for, scores_in_use
from haltwise.curves.model import CurveCard, CurveModel, Loss, Range, cost_scale, per_cost

__all__ = [
    "LOST",
    "EndedEarly",
    "Learned",
    "cross_fit",
    "folds_of",
    "learn",
    "rows_of",
    "with_room",
]

LOST = (0.01, 0.02, 0.05)
"""Shares of the successes that may be lost, for which levels are chosen."""

EndedEarly = Literal["failures", "left out"]
"""What runs count as that ended before their budget without meeting their target."""

_AT_ONCE = 2**14  # points forecast at once, whose features take 6 MB
_POINTS = 20  # of a run, evenly spread over its budget, are learned from
_EASIER, _EASIER_WEIGHT = 2, 0.5  # targets a run beside its own, and the weight of their rows
_FOLDS = 12
_FEWEST = 10  # successes, and as many failures
_MANY = 1000  # runs from which a forecast learned elsewhere is no help any more
_MARGIN = 0.5  # standard errors over groups that a level stays within what may be lost


@final
class Learned(NamedTuple):
    """A model, and what forecasts that had not seen their group made of the runs.

    Attributes:
        model: The model, fitted to all runs.
        curves: The runs it was learned on.
        chances: Cross-fitted chances at each point of each run.
        folds: The fold of each run, shape [n].
    """

    model: CurveModel
    curves: Curves
    chances: list[Floats]
    folds: npt.NDArray[np.int64]

    @property
    def scores(self) -> list[Floats]:
        """Cross-fitted scores of each run, as those of `CurveModel.score` by which monitors go."""
        return _scores_of(self.curves, self.chances)

    def unseen(self, lost: float) -> GiveUps:
        """What giving up does at levels for a share lost that are chosen on the other folds."""
        scores = self.scores
        stops = GiveUps.of(self.curves, scores, candidate_levels(self.curves, scores))
        return _at_unseen_levels(self.curves, stops, self.folds, lost)


def _silent(line: str) -> None:
    """Say nothing."""


def learn(
    curves: Curves,
    *,
    base: Forecast | None = None,
    beside: Sequence[Rows] = (),
    ended_early: EndedEarly = "failures",
    lost: Sequence[float] = LOST,
    seed: int = 0,
    most_rows: int = MOST_ROWS,
    progress: Callable[[str], None] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Learned:
    """Learn which runs will meet their targets, and levels that lose few of those that would.

    Groups are dealt to folds; the levels are chosen on scores of forecasts that have not seen the
    group of the run, and so are the figures on the card. The forecast that is returned is then
    fitted to all runs. With few runs a forecast learned elsewhere (`base`) is one more feature,
    where that lowers the cross-fitted log loss.

    Args:
        curves: Runs with targets.
        base: A forecast learned elsewhere.
        beside: Rows of other runs to learn from as well, see `rows_of`; none of them is held out.
        ended_early: What runs that ended before their budget without success count as. Whether
            they would have succeeded is not known: as failures they make the forecast too low where
            good runs were ended too, and left out they leave the doomed ones out.
        lost: Shares of the successes that may be lost.
        seed: Of everything that is random.
        most_rows: Points, of all runs, that trees are fitted to; more take longer.
        progress: Called with a line after each step.
        provenance: What the card shall remember, for people.

    Raises:
        InputError: Too few runs meet their target, or too few do not.

    Warns:
        DataWarning: Runs were left out or ended early, there is but one group, or runs are copies
            of others.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> ends = rng.uniform(0.2, 2.0, 60)  # a run of 30 steps falls from 3 towards its end
        >>> losses = ends[:, None] + (3 - ends[:, None]) * 0.9 ** np.arange(30)
        >>> groups = [str(i % 2) for i in range(60)]
        >>> found = learn(Curves.from_matrix(losses, target=1.0, group=groups))
        >>> list(found.model.card.levels)
        ['0.01', '0.02', '0.05']
    """
    say = progress or _silent
    one_of("ended_early", ended_early, get_args(EndedEarly))
    curves = _usable(curves, ended_early)
    folds = folds_of(curves, seed)
    num_folds = int(folds.max()) + 1
    say(f"{curves.num_runs} runs, {len(np.unique(curves.group))} groups, {num_folds} folds")
    rows = rows_of(curves, seed)
    bases = [base] if base is None or curves.num_runs >= _MANY else [None, base]
    fitted = [cross_fit(rows, curves, folds, seed, one, beside, say, most_rows) for one in bases]
    best = int(np.argmin([_log_loss(curves, chances) for chances in fitted]))
    chosen, chances = (None if len(bases) == 1 else bases[best]), fitted[best]
    scores = _scores_of(curves, chances)
    stops = GiveUps.of(curves, scores, candidate_levels(curves, scores))
    levels = {}
    for share in lost:
        level = level_for(stops, curves.group, share, margin=_MARGIN)
        unseen = _at_unseen_levels(curves, stops, folds, share)
        levels[f"{share:g}"] = Loss(
            level, float(unseen.share_saved[0]), float(unseen.share_lost[0])
        )
    say("fitting to all runs")
    forecast = Forecast.fit(Rows.join([rows, *beside]), seed=seed, base=chosen, most_rows=most_rows)
    card = CurveCard(
        metric=curves.metric,
        cost_unit=curves.cost_unit,
        cost_scale=cost_scale(curves),
        direction=curves.direction,
        levels=levels,
        ranges=_ranges(rows.features),
        beside={} if beside else shares_beside(curves),  # other sets lack columns that these have
        num_runs=curves.num_runs,
        num_groups=len(np.unique(curves.group)),
        seen=marks_of_runs(curves),
        provenance={"pretrained": chosen is not None, **(provenance or {})},
    )
    return Learned(CurveModel(forecast, card), curves, chances, folds)


def _scores_of(curves: Curves, chances: Sequence[Floats]) -> list[Floats]:
    pairs = zip(curves, chances, strict=True)
    return scores_in_use([per_cost(curve, chance) for curve, chance in pairs])


def _at_unseen_levels(
    curves: Curves, stops: GiveUps, folds: npt.NDArray[np.int64], lost: float
) -> GiveUps:
    """The runs of each fold at the level that is chosen on the others, one column."""
    saved = np.zeros((curves.num_runs, 1))
    given_up = np.zeros((curves.num_runs, 1), bool)
    for fold in np.unique(folds):
        mine = folds == fold
        level = level_for(stops.select(~mine), curves.group[~mine], lost, margin=_MARGIN)
        place = int(np.searchsorted(stops.level, level, side="right")) - 1
        if place >= 0:
            saved[mine, 0], given_up[mine, 0] = stops.saved[mine, place], stops.lost[mine, place]
    return stops._replace(level=np.array([np.nan]), saved=saved, lost=given_up)


def with_room(curves: Curves) -> Curves:
    """The runs that have something to spend, so that something can be saved.

    Raises:
        InputError: None has.

    Warns:
        DataWarning: Some have not, or meet their target beyond their budget.
    """
    room = curves.budget > 0
    require(
        bool(room.any()),
        "no run has a budget above 0, so nothing can be saved; give each run more than one point, "
        "or name a budget",
    )
    if not room.all():
        warn(
            f"{int((~room).sum())} of {curves.num_runs} runs are left out: their budget is 0",
            DataWarning,
        )
    late = int(curves.late[room].sum())
    if late:
        warn(
            f"{late} of {curves.num_runs} runs meet their target beyond their budget, and count as "
            "successes; if they are none, leave out what was logged there, as by haltwise.curves."
            "read(PATH).within_budgets().save(FILE), else name a larger budget (--budget)",
            DataWarning,
        )
    return curves.select(room)


def _usable(curves: Curves, ended_early: EndedEarly) -> Curves:
    """The runs that can be learned from, at the points that measured their metric."""
    curves = with_room(curves).measured()
    missing, censored = np.isnan(curves.target), curves.censored
    dropped = missing | (censored if ended_early == "left out" else False)
    for number, what in (
        (int(missing.sum()), "have no target and are left out"),
        (int((censored & ~missing).sum()), f"ended before their budget and are {ended_early}"),
    ):
        if 0 < number < curves.num_runs:
            warn(f"{number} of {curves.num_runs} runs {what}", DataWarning)
    require(
        not missing.all(),
        "no run has a target, so nothing is a success; name one, or ask for a quantile of what "
        "runs of the same task reach (Curves.targets_among_peers)",
    )
    kept = curves.select(~dropped)
    num = int(kept.succeeded.sum())
    require(
        min(num, kept.num_runs - num) >= _FEWEST,
        f"{num} of {kept.num_runs} runs met their target; at least {_FEWEST} that do and "
        f"{_FEWEST} that do not are needed: record more, or set another target",
    )
    return kept


def folds_of(curves: Curves, seed: int, most: int = _FOLDS) -> npt.NDArray[np.int64]:
    """The fold of each run, shape [n]: whole groups, the largest dealt first.

    Warns:
        DataWarning: There is but one group, so runs are dealt; what is learned may not hold for
            another. Or one run in a hundred or more has the very points of another.
    """
    has_groups = len(np.unique(curves.group)) > 1
    warn_of_copied_runs(
        curves,
        curves.group.tolist() if has_groups else None,
        harm="if they are copies, what is learned is tried on runs that it has seen, and its "
        "figures are too good",
        category=DataWarning,
    )
    if has_groups:
        return deal(curves.group, most, seed)
    warn(
        "all runs are of one group: what is learned is tried on other runs of this group, and "
        "need not hold for another; name a column of groups if there are some",
        DataWarning,
    )
    return deal(np.arange(curves.num_runs).astype(str), most, seed)


def rows_of(curves: Curves, seed: int) -> Rows:
    """Points of runs to fit a forecast to, some with easier targets than the run's own.

    What a run would have been with another target is known as well, as long as the target is
    easier, so that a run that succeeded was not ended before it. Such targets, what a random run
    of the same task reached, make the forecast one of the curve instead of one of the task.

    Args:
        curves: Runs.
        seed: Of the targets.
    """
    parts = [_rows(curves, easier=False)]
    rng = np.random.default_rng(seed)
    reached = np.array([_reached(curve.loss) for curve in curves])
    sign = -1.0 if curves.direction == "max" else 1.0
    for _ in range(_EASIER):
        target = np.full(curves.num_runs, np.nan)
        for task in np.unique(curves.task):
            mine = np.flatnonzero(curves.task == task)
            finite = reached[mine][np.isfinite(reached[mine])]
            if len(finite) > 2:
                drawn = rng.choice(finite, len(mine))
                spread = np.median(finite) - finite.min()
                drawn += 0.05 * spread * rng.standard_normal(len(mine))
                target[mine] = sign * np.maximum(drawn, sign * curves.target[mine])
        known = np.isfinite(target)
        if not known.any():  # each task has a run or two
            break
        easier = curves.with_targets(target).select(known)
        part = _rows(easier, easier=True)
        parts.append(part._replace(run=np.flatnonzero(known)[part.run]))
    return Rows.join(parts)


def _rows(curves: Curves, *, easier: bool) -> Rows:
    success, weight = curves.success, _EASIER_WEIGHT if easier else 1.0
    parts = []
    for run, curve in enumerate(curves):
        end = success[run] if success[run] >= 0 else curve.num_points
        place = np.arange(min(1, end - 1), end) if end > 0 else np.arange(0)
        share = np.floor(_POINTS * curve.cost[place] / curve.budget)
        place = place[np.append(True, share[1:] > share[:-1])[: len(place)]]
        num = len(place)
        parts.append(
            Rows(
                curve_features(curve)[place],
                np.full(num, success[run] >= 0),
                np.full(num, weight / max(num, 1)),
                np.full(num, run),
                np.full(num, easier),
            )
        )
    return Rows.join(parts)


def cross_fit(
    rows: Rows,
    curves: Curves,
    folds: npt.NDArray[np.int64],
    seed: int,
    base: Forecast | None = None,
    beside: Sequence[Rows] = (),
    say: Callable[[str], None] = _silent,
    most_rows: int = MOST_ROWS,
) -> list[Floats]:
    """The chances at each point of each run, by a forecast that has not seen the run's fold."""
    chances: list[Floats] = [np.empty(0)] * curves.num_runs
    num_folds = int(folds.max()) + 1
    for fold in range(num_folds):
        others = Rows.join([rows.select(folds[rows.run] != fold), *beside])
        forecast = Forecast.fit(others, seed=seed, base=base, most_rows=most_rows)
        for mine in _portions(np.flatnonzero(folds == fold), curves.num_points):
            features = [curve_features(curves[run]) for run in mine]
            found = forecast.chance(np.concatenate(features))
            ends = np.cumsum([len(each) for each in features])[:-1]
            for run, chance in zip(mine, np.split(found, ends), strict=True):
                chances[run] = chance
        say(f"fold {fold + 1} of {num_folds}")
    return chances


def _portions(runs: Integers, num_points: Integers) -> list[list[int]]:
    """The runs, so many at once that features of their points take little room."""
    portion = np.cumsum(num_points[runs]) // _AT_ONCE
    return [
        part.tolist() for part in np.split(runs, np.flatnonzero(np.diff(portion)) + 1) if len(part)
    ]


def _log_loss(curves: Curves, chances: Sequence[Floats]) -> float:
    """Mean over runs of the mean log loss at the points before their end."""
    total = 0.0
    for success, chance in zip(curves.success, chances, strict=True):
        before = chance[: success if success >= 0 else None]
        if len(before):
            total -= float(np.log(before if success >= 0 else 1 - before).mean())
    return total / len(chances)


def _reached(loss: Floats) -> float:
    finite = loss[np.isfinite(loss)]
    return float(finite.min()) if len(finite) else np.inf


def _ranges(features: Floats) -> dict[str, Range]:
    found = {}
    for name, column in zip(FEATURES, features.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known):
            low, high = np.percentile(known, (0.5, 99.5))
            found[name] = Range(float(low), float(high))
    return found
