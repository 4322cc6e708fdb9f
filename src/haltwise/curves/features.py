"""Features of learning curves that know no units, so that one model serves strangers' curves.

The metric is measured from the target, in units of the first distance to it: 1 at the start, 0
where the target is met. Cost is measured in budgets. What was not measured is NaN.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from haltwise._core.errors import FitWarning, warn
from haltwise.curves.curves import Booleans, Curve, Curves, Floats, Integers, last_known
from haltwise.curves.progress import first_known

__all__ = ["FEATURES", "ROLES", "curve_features", "has_diverged", "shares_beside", "tell_lacking"]

ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train_metric": ("train_metric", "train", "train_accuracy", "train_acc"),
        "train_loss": ("train_loss", "loss", "logged_loss_mean"),
        "valid_loss": ("valid_loss", "val_loss", "eval_loss"),
        "grad_norm": ("grad_norm", "logged_grad_norm_geomean", "gradient_norm"),
    }
)
"""Columns that are looked at where a curve has them beside its metric, by the first name that is
there; others are not. The name of the metric tells nothing: a metric that should fall and is
positive stands for the loss of validation where there is no other."""

_Values = TypeVar("_Values", Floats, Integers)

_PAST = (0.25, 0.5, 0.75, 0.9)  # of the cost so far: what was known then is compared with now
_LONG = 0.1  # of the budget: a run that was never finite by then has diverged
_RECENT = 6  # points over which noise is measured
_MOSTLY = 0.9  # of the points at which a column was known; trees then saw too few without it
_TINY, _FAR = 1e-3, 3.0  # distances below and beyond are not told apart

FEATURES: tuple[str, ...] = (
    "cost",
    "points",
    "distance",
    "best",
    "stale",
    "unknown",
    *(f"best_gain_{past}" for past in _PAST),
    *(f"gain_{past}" for past in _PAST[1:]),
    *(f"power_{past}" for past in _PAST[:3]),
    *(f"power_end_{past}" for past in _PAST[:3]),
    *(f"line_end_{past}" for past in _PAST[:3]),
    *(f"line_ratio_{past}" for past in _PAST[:3]),
    "speed_needed",
    "noise",
    "noise_ratio",
    "climbed",
    "train_distance",
    "gap",
    "train_gain_0.5",
    "train_gain_0.75",
    "train_loss",
    "train_loss_fall_0.5",
    "train_loss_fall_0.75",
    "valid_loss",
    "valid_loss_fall_0.5",
    "valid_loss_fall_0.75",
    "loss_ratio",
    "grad_norm",
    "grad_norm_fall_0.5",
)
"""Names of the F features, in order."""


def curve_features(curve: Curve, last: int | None = None) -> Floats:
    """Compute the features at each of n points from what was known by then, shape [n, F].

    A metric that is NaN was not measured there: the last known one stands, and `unknown` says for
    how long. One that is infinite is as far from the target as can be.

    Args:
        curve: The curve so far.
        last: At how many of the last points, all if None.

    Examples:
        >>> from haltwise.curves.curves import Curves
        >>> curve = Curves.from_matrix([[4.0, 3.0, 2.5]], target=2.0, budget=10.0)[0]
        >>> curve_features(curve)[:, FEATURES.index("distance")].tolist()
        [1.0, 0.5, 0.25]
    """
    cost = curve.cost / curve.budget
    loss = last_known(curve.loss)
    with np.errstate(all="ignore"):  # what is not known is NaN, and stays so
        # The first distance to the target is the unit.
        unit = np.abs(first_known(loss) - curve.loss_target)
        unit = np.where(unit > 0, unit, np.nan)
        distance = np.clip((loss - curve.loss_target) / unit, -1.0, _FAR)
        distance[loss == np.inf] = _FAR  # before any is finite, too
        times = _Times(cost, len(cost) if last is None else last)
        columns = [
            *_progress(cost, distance, np.isnan(curve.loss), times),
            *_beside(curve, distance, unit, times),
        ]
        return np.stack(columns, 1)


def has_diverged(features: Floats) -> Booleans:
    """Where the metric was measured, but never finite by a tenth of the budget or later, bool [n].

    Features have shape [n, F], as of `curve_features`. The first finite value is at a distance
    of 1, so the best is not farther from then on.
    """
    cost, best = (features[:, FEATURES.index(name)] for name in ("cost", "best"))
    diverged: Booleans = (cost >= _LONG) & (best > 1)
    return diverged


def shares_beside(curves: Curves) -> dict[str, float]:
    """By role, the share of all points at which a column of `ROLES` was known."""
    known = dict.fromkeys(ROLES, 0)
    for curve in curves:
        for role, values in _in_roles(curve).items():
            known[role] += int(np.count_nonzero(~np.isnan(values)))
    return {role: num / len(curves.cost) for role, num in known.items()}


def tell_lacking(curve: Curve, shares: Mapping[str, float], score: Floats) -> Floats:
    """The score, infinite where a column is not known that trees have hardly seen a run without.

    Args:
        curve: A run.
        shares: What `shares_beside` says of the runs that were learned from.
        score: By the trees, at each point or the last ones, shape [n].

    Warns:
        FitWarning: There is such a column, so the run cannot be stopped.
    """
    needed = [role for role in ROLES if shares.get(role, 0.0) >= _MOSTLY]
    if not needed:
        return score
    found, unknown = _in_roles(curve), np.full(curve.num_points, np.nan)
    lacking = {role: np.isnan(found.get(role, unknown)[-len(score) :]) for role in needed}
    told = np.where(np.any([*lacking.values()], 0), np.inf, score)
    if np.isinf(told[-1]) and not np.isinf(score[-1]):
        names = " and ".join(
            f"{', '.join(ROLES[role][:-1])} or {ROLES[role][-1]}"
            for role, missing in lacking.items()
            if missing[-1]
        )
        warn(
            f"the runs that this model was learned on had a column {names} beside their metric; "
            "this one does not, so nothing is known of its chances and it is not stopped: measure "
            "it here, too (RunMonitor.update(value, NAME=...)), or learn from logs without it",
            FitWarning,
        )
    return told


def _progress(cost: Floats, distance: Floats, unknown: Booleans, times: "_Times") -> list[Floats]:
    """What cost and metric show."""
    num = len(cost)
    points = np.arange(num)
    best = np.fmin.accumulate(distance)
    improved = np.append(True, best[1:] < best[:-1])
    since = np.maximum.accumulate(np.where(improved, points, 0))
    seen = np.maximum.accumulate(np.where(unknown, 0, points))
    stale, unseen = times.now(cost - cost[since]), times.now(cost - cost[seen])
    step = np.nan_to_num(np.diff(distance, prepend=distance[:1]))
    squares = np.cumsum(step**2)
    earlier = np.concatenate((np.zeros(min(_RECENT, num)), squares[:-_RECENT]))[:num]
    noise = np.sqrt(times.now(squares - earlier) / np.minimum(times.now(points) + 1, _RECENT))
    climbed = times.now(np.cumsum(np.maximum(step, 0.0)))
    best_then = [times.then(past, best) for past in _PAST]
    log_best_then = [times.then(past, best, _log) for past in _PAST[:3]]
    distance_then = [times.then(past, distance) for past in _PAST[1:]]

    cost, distance, best = times.now(cost), times.now(distance), times.now(best)
    log_best, left = _log(best), 1 - cost
    # Through then and now: a power law of the cost, and a straight line, both to the budget's end.
    powers = [
        (before - log_best) / -np.log(past)
        for past, before in zip(_PAST, log_best_then, strict=False)
    ]
    lines = [
        (before - best) / (cost * (1 - past) + 1e-6)
        for past, before in zip(_PAST[:3], best_then, strict=False)
    ]
    return [
        cost,
        np.log1p(times.now(points)),
        distance,
        best,
        stale / cost,
        unseen,
        *(before - best for before in best_then),
        *(before - distance for before in distance_then),
        *powers,
        *(np.clip(log_best + power * np.log(cost), -10.0, 3.0) for power in powers),
        *(np.clip(best - line * left, -_FAR, _FAR) for line in lines),
        *(log_best - np.log(np.maximum(line * left, 1e-6)) for line in lines),
        # The speed that is needed now, over the mean speed so far.
        np.clip(best / (1 - best + _TINY) * cost / (left + _TINY), 0.0, 50.0),
        noise,
        np.log(noise + _TINY) - np.log(best_then[1] - best + _TINY),
        climbed,
    ]


def _log(distance: Floats) -> Floats:
    log: Floats = np.log(np.maximum(distance, _TINY))
    return log


def _beside(curve: Curve, distance: Floats, unit: Floats, times: "_Times") -> list[Floats]:
    """What the columns beside the metric show."""
    in_roles = _in_roles(curve)
    lacking = np.full(curve.num_points, np.nan)
    metric, train, valid, gradient = (in_roles.get(role, lacking) for role in ROLES)
    if valid is lacking and curve.direction == "min":
        own = last_known(curve.loss)
        valid = np.where(np.fmin.accumulate(own) > 0, own, np.nan)  # of what can be negative, none
    sign = -1.0 if curve.direction == "max" else 1.0
    train_distance = np.clip((sign * metric - curve.loss_target) / unit, -_FAR, _FAR)
    now = times.now(train_distance)
    found = [
        now,
        now - times.now(distance),
        *(times.then(past, train_distance) - now for past in (0.5, 0.75)),
    ]
    for loss in (train, valid):
        found += _falls(loss, (0.5, 0.75), times)
    found.append(np.clip(np.log(times.now(train) / times.now(valid)), -10.0, 10.0))
    return found + _falls(gradient, (0.5,), times)


def _falls(values: Floats, pasts: tuple[float, ...], times: "_Times") -> list[Floats]:
    """The logarithm of positive values over the first of them, and how far it has fallen since."""
    ratio = values / first_known(values)

    def log(ratio: Floats) -> Floats:
        found: Floats = np.log(np.maximum(ratio, 1e-9))
        return found

    now = log(times.now(ratio))
    return [now, *(times.then(past, ratio, log) - now for past in pasts)]


def _in_roles(curve: Curve) -> dict[str, Floats]:
    """The columns of `ROLES` that a curve has, NaN where nothing was measured yet."""
    found = {}
    for role, names in ROLES.items():
        own = [name for name in names if name in curve.columns and name != curve.metric]
        if own:
            found[role] = last_known(curve.columns[own[0]])
    return found


class _Times:
    """Values [n] at the last points, and when a share of what they had cost had been spent."""

    def __init__(self, cost: Floats, last: int) -> None:
        self._last = slice(max(len(cost) - last, 0), None)
        self._then = {past: self._between(past, cost) for past in _PAST}

    def _between(self, past: float, cost: Floats) -> tuple[Integers, Integers, Floats]:
        """The points before and after such a time, and how much of the way between was gone."""
        at = past * self.now(cost)
        after = np.minimum(np.searchsorted(cost, at), len(cost) - 1)
        before = np.maximum(after - 1, 0)
        gap = cost[after] - cost[before]
        done = np.where(gap > 0, (at - cost[before]) / np.where(gap > 0, gap, 1), 1)
        return before, after, np.clip(done, 0, 1)

    def now(self, values: _Values) -> _Values:
        return values[self._last]

    def then(
        self, past: float, values: Floats, function: Callable[[Floats], Floats] = np.asarray
    ) -> Floats:
        """A function of the values when this share had been spent, between points by a line."""
        before, after, share = self._then[past]
        low, high = function(values[before]), function(values[after])
        # A value that is not known on one side leaves the other.
        between = low + share * (high - low)
        found: Floats = np.where(np.isnan(between), np.fmin(low, high), between)
        return found
