"""Judge a rule that gives runs up on recorded runs that it has not seen."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

import numpy as np
import torch

from haltwise._core.errors import DataWarning, FitWarning, InputError, warn
from haltwise.curves.copies import warn_of_seen_runs
from haltwise.curves.curves import Curves, Floats
from haltwise.curves.forecast import Forecast
from haltwise.curves.learning import Learned, learn, with_room
from haltwise.curves.levels import GiveUps, scores_in_use
from haltwise.curves.model import CurveModel, cost_scale
from haltwise.evaluation.statistics import Interval, jackknife, share_interval

__all__ = [
    "GiveUpFigures",
    "GiveUpRecord",
    "SizeFigures",
    "judge_curves",
    "judge_learned",
    "judge_sizes",
    "quarter_auc",
    "with_targets",
]

_QUARTER = 0.25  # of the budget
_OFTEN = 0.2  # of the runs; each feature leaves 1 % of those learned on outside
_FEWEST_RUNS, _MOST_SIZES = 40, 5


@final
@dataclass(frozen=True)
class GiveUpFigures:
    """What giving up at one level did."""

    level: float
    """Runs were given up at the first score below it."""
    saved: Interval
    """The share of all cost that was not spent."""
    lost: Interval
    """The share of successes that were given up."""


@final
@dataclass(frozen=True)
class SizeFigures:
    """What as many past runs would have been worth, at one level, to groups unseen."""

    runs: int
    saved: float
    """The share of all cost that is saved."""
    lost: float
    """The share of successes that is lost."""


@final
@dataclass(frozen=True)
class GiveUpRecord:
    """A rule that gives runs up, judged on n runs.

    Intervals are those of `haltwise.evaluation.statistics.jackknife`, with whole groups left out,
    and for the share of successes lost of `haltwise.evaluation.statistics.share_interval`.
    """

    runs: int
    groups: int
    succeeded: int
    """Runs that met their target."""
    ended_early: int
    """Runs that ended before their budget without success, which count as failures."""
    spent: float
    """What all runs spent until they met their target or ended, in `cost_unit`."""
    cost_unit: str
    oracle_saved: float
    """The share that runs without success spent: who knows the future saves it all."""
    quarter_auc: float
    """Probability that of a success and a failure the success has the higher chance, as forecast
    at a quarter of the budget; runs that had succeeded or ended by then are left out."""
    levels: dict[str, GiveUpFigures]
    """By the share of successes that may be lost."""
    by_group: dict[str, dict[str, tuple[float, float]]]
    """The shares saved and lost of each group at each level."""
    by_size: list[SizeFigures] = field(default_factory=list)
    """What fewer past runs would have been worth, at the level for the most successes lost."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; in `levels`, `saved` and `lost` are numbers and their intervals beside.

        What was spent is called `hours`, too, where it is.
        """
        document = asdict(self)
        if self.cost_unit == "hours":
            document["hours"] = self.spent
        for name, figures in self.levels.items():
            saved, lost = figures.saved, figures.lost
            document["levels"][name] = {
                "level": figures.level,
                "saved": saved.value,
                "saved_interval": [saved.low, saved.high],
                "lost": lost.value,
                "lost_interval": [lost.low, lost.high],
            }
        return document


def judge_learned(learned: Learned, price: float | None = None) -> GiveUpRecord:
    """Judge a model on the runs that it was learned on, each by what had not seen its group.

    Neither the forecast of a run nor the level at which it is given up were chosen with its fold.

    Args:
        learned: What `haltwise.curves.learn` returned.
        price: (value of a unit of cost) / (value of a success): a further level.
    """
    levels = {name: found.level for name, found in learned.model.card.levels.items()}
    stops = {name: learned.unseen(float(name)) for name in levels}
    if price is not None:
        name, level = f"price {price:g}", learned.model.level(price=price)
        levels[name] = level
        stops[name] = GiveUps.of(learned.curves, learned.scores, np.array([level]))
    return _record(learned.curves, learned.chances, levels, stops)


def judge_sizes(
    record: GiveUpRecord,
    learned: Learned,
    base: Forecast | None = None,
    progress: Callable[[str], None] | None = None,
) -> GiveUpRecord:
    """The record with what fewer past runs would have been worth: from how many on it pays.

    The same is learned from runs drawn at random, a quarter, a half and all of them, and so on down
    to some dozens; sizes at which nothing can be learned are left out.

    Args:
        record: That of `learned`.
        learned: What was learned from all runs.
        base: The forecast learned elsewhere that it was given.
        progress: Called with a line for each size.
    """
    curves = learned.curves
    lost = max(float(name) for name in learned.model.card.levels)
    own = record.levels[f"{lost:g}"]
    found = [SizeFigures(curves.num_runs, own.saved.value, own.lost.value)]
    order = np.random.default_rng(0).permutation(curves.num_runs)
    size = curves.num_runs // 2
    while size >= _FEWEST_RUNS and len(found) < _MOST_SIZES:
        if progress:
            progress(f"what {size} past runs would have been worth")
        part = curves.select(np.sort(order[:size]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # of all of them it was said before
                at = learn(part, base=base, lost=(lost,)).model.card.levels[f"{lost:g}"]
            found.append(SizeFigures(size, at.saved, at.lost))
        except InputError:
            break  # too few successes or failures among them, and among fewer still
        size //= 2
    return replace(record, by_size=found[::-1])


def judge_curves(model: CurveModel, curves: Curves) -> GiveUpRecord:
    """Give runs up at the levels on the model's card, and see what that saves and loses.

    As in use, a run has three points before it is given up.
    Levels are in chances per unit of cost. Where the runs count cost in another unit than the card,
    they are translated by the budget of each run, as in use, and the record has that of a mean
    budget. Runs without a target are left out.

    Raises:
        InputError: No run has a target, or none a budget above 0.

    Warns:
        FitWarning: Many runs look unlike those that the model was learned on. It is a `DataWarning`
            that runs without a target or a budget are left out, medians of peers taken for
            targets, or that the model was learned on some of the runs.
    """
    curves = with_room(with_targets(curves)).measured()
    warn_of_seen_runs(model, curves)
    _warn_of_unusual(model, curves)
    scale = None if curves.cost_unit == model.card.cost_unit else cost_scale(curves)
    levels = {name: model.level(lost=float(name), scale=scale) for name in model.card.levels}
    chances = [model.chance(curve) for curve in curves]
    sizes = np.ones(curves.num_runs) if scale is None else curves.budget / scale
    scores = scores_in_use(
        [
            model.score_of(curve, chance) * size
            for curve, chance, size in zip(curves, chances, sizes, strict=True)
        ]
    )
    stops = {name: GiveUps.of(curves, scores, np.array([level])) for name, level in levels.items()}
    return _record(curves, chances, levels, stops)


def _warn_of_unusual(model: CurveModel, curves: Curves) -> None:
    """Warn where many runs lie beyond what a model was learned on, at a quarter of their budget."""
    found = Counter[str]()
    for curve in curves:
        num = int(np.searchsorted(curve.cost, _QUARTER * curve.budget, side="right"))
        found.update(model.unusual(curve.until(max(num, 1))))
    often = {name: num for name, num in found.items() if num > _OFTEN * curves.num_runs}
    if often:
        listed = ", ".join(f"{name} in {num}" for name, num in sorted(often.items()))
        warn(
            f"of {curves.num_runs} runs many lie beyond what the model was learned on ({listed}); "
            "its levels may not hold: learn from runs of this kind with haltwise learn",
            FitWarning,
        )


def _record(
    curves: Curves,
    chances: Sequence[Floats],
    levels: Mapping[str, float],
    stops: Mapping[str, GiveUps],
) -> GiveUpRecord:
    names, index = np.unique(curves.group, return_inverse=True)
    groups = torch.from_numpy(index.astype(np.int64))
    spent, succeeded = curves.spent, curves.succeeded
    total = float(spent.sum())
    return GiveUpRecord(
        runs=curves.num_runs,
        groups=len(names),
        succeeded=int(succeeded.sum()),
        ended_early=int(curves.censored.sum()),
        spent=total,
        cost_unit=curves.cost_unit,
        oracle_saved=float(spent[~succeeded].sum()) / total if total else float("nan"),
        quarter_auc=quarter_auc(curves, chances),
        levels={
            name: GiveUpFigures(levels[name], *_shares(found, groups))
            for name, found in stops.items()
        },
        by_group={
            str(group): {
                name: (float(part.share_saved[0]), float(part.share_lost[0]))
                for name, found in stops.items()
                for part in (found.select(index == place),)
            }
            for place, group in enumerate(names)
        },
    )


def with_targets(curves: Curves) -> Curves:
    """The runs that have targets, or all with the median of their peers where none has one."""
    missing = np.isnan(curves.target)
    if missing.all():
        warn(
            "no run has a target: the median of what runs of the same task reach at their end is "
            "taken for one; name another by --target",
            DataWarning,
        )
        return curves.targets_among_peers()
    if missing.any():
        warn(
            f"{int(missing.sum())} of {curves.num_runs} runs are left out: they have no target",
            DataWarning,
        )
    return curves.select(~missing)


def _shares(stops: GiveUps, groups: torch.Tensor) -> tuple[Interval, Interval]:
    columns = torch.from_numpy(
        np.stack((stops.saved[:, 0], stops.spent, stops.lost[:, 0], stops.succeeded), 1).astype(
            np.float64
        )
    )
    saved, lost = jackknife(
        lambda means: torch.stack((means[:, 0] / means[:, 1], means[:, 2] / means[:, 3]), 1),
        columns,
        groups,
    )
    return saved.of_share(), share_interval(lost, columns[:, 2], columns[:, 3], groups)


def quarter_auc(curves: Curves, chances: Sequence[Floats]) -> float:
    """See `GiveUpRecord.quarter_auc`; NaN where no success or no failure is left by then.

    Each success is compared with the failures of its own task: what sets tasks apart is no merit.
    """
    success = curves.success
    won = pairs = 0.0
    at = np.full(curves.num_runs, np.nan)
    for run, (curve, chance) in enumerate(zip(curves, chances, strict=True)):
        place = int(np.searchsorted(curve.cost, _QUARTER * curve.budget, side="right")) - 1
        running = place < curve.num_points - 1 and (success[run] < 0 or place < success[run])
        if place >= 0 and running:
            at[run] = chance[place]
    for task in np.unique(curves.task):
        mine = (curves.task == task) & ~np.isnan(at)
        good, bad = at[mine & (success >= 0)], np.sort(at[mine & (success < 0)])
        below = np.searchsorted(bad, good, side="left")
        equal = np.searchsorted(bad, good, side="right") - below
        won += float((below + 0.5 * equal).sum())
        pairs += float(len(good) * len(bad))
    return won / pairs if pairs else float("nan")
