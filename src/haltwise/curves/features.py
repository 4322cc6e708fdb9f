"""Features of learning curves that know no units, so that one model serves strangers' curves.

The metric is measured from the target, in units of the first distance to it: 1 at the start, 0
where the target is met. Cost is measured in budgets. What was not measured is NaN.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from haltwise._core.errors import FitWarning, warn
from haltwise.curves.curves import Booleans, Curve, Curves, Floats
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


def curve_features(curve: Curve) -> Floats:
    """Compute the features at each of n points from what was known by then, shape [n, F].

    A metric that is NaN was not measured there: the last known one stands, and `unknown` says for
    how long. One that is infinite is as far from the target as can be.

    Examples:
        >>> from haltwise.curves.curves import Curves
        >>> curve = Curves.from_matrix([[4.0, 3.0, 2.5]], target=2.0, budget=10.0)[0]
        >>> curve_features(curve)[:, FEATURES.index("distance")].tolist()
        [1.0, 0.5, 0.25]
    """
    cost = curve.cost / curve.budget
    loss = _filled(curve.loss)
    with np.errstate(all="ignore"):  # what is not known is NaN, and stays so
        # The first distance to the target is the unit.
        unit = np.abs(first_known(loss) - curve.loss_target)
        unit = np.where(unit > 0, unit, np.nan)
        distance = np.clip((loss - curve.loss_target) / unit, -1.0, _FAR)
        distance[loss == np.inf] = _FAR  # before any is finite, too
        then = {past: _Then(past, cost) for past in _PAST}
        columns = [
            *_progress(cost, distance, np.isnan(curve.loss), then),
            *_beside(curve, distance, unit, then),
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


def _progress(
    cost: Floats, distance: Floats, unknown: Booleans, then: Mapping[float, "_Then"]
) -> list[Floats]:
    """What cost and metric show."""
    num = len(cost)
    points = np.arange(num)
    best = np.fmin.accumulate(distance)
    improved = np.append(True, best[1:] < best[:-1])
    since = np.maximum.accumulate(np.where(improved, points, 0))
    seen = np.maximum.accumulate(np.where(unknown, 0, points))
    log_best = np.log(np.maximum(best, _TINY))
    left = 1 - cost
    best_then = [then[past](best) for past in _PAST]
    # Through then and now: a power law of the cost, and a straight line, both to the budget's end.
    powers = [(then[past](log_best) - log_best) / -np.log(past) for past in _PAST[:3]]
    lines = [
        (before - best) / (cost * (1 - past) + 1e-6)
        for past, before in zip(_PAST[:3], best_then, strict=False)
    ]
    step = np.diff(distance, prepend=distance[:1])
    squares = np.cumsum(np.nan_to_num(step) ** 2)
    earlier = np.concatenate((np.zeros(min(_RECENT, num)), squares[:-_RECENT]))[:num]
    noise = np.sqrt((squares - earlier) / np.minimum(points + 1, _RECENT))
    return [
        cost,
        np.log1p(points),
        distance,
        best,
        (cost - cost[since]) / cost,
        cost - cost[seen],
        *(before - best for before in best_then),
        *(then[past](distance) - distance for past in _PAST[1:]),
        *powers,
        *(np.clip(log_best + power * np.log(cost), -10.0, 3.0) for power in powers),
        *(np.clip(best - line * left, -_FAR, _FAR) for line in lines),
        *(log_best - np.log(np.maximum(line * left, 1e-6)) for line in lines),
        # The speed that is needed now, over the mean speed so far.
        np.clip(best / (1 - best + _TINY) * cost / (left + _TINY), 0.0, 50.0),
        noise,
        np.log(noise + _TINY) - np.log(best_then[1] - best + _TINY),
        np.cumsum(np.maximum(np.nan_to_num(step), 0.0)),
    ]


def _beside(
    curve: Curve, distance: Floats, unit: Floats, then: Mapping[float, "_Then"]
) -> list[Floats]:
    """What the columns beside the metric show."""
    in_roles = _in_roles(curve)
    lacking = np.full(curve.num_points, np.nan)
    metric, train, valid, gradient = (in_roles.get(role, lacking) for role in ROLES)
    if valid is lacking and curve.direction == "min":
        own = _filled(curve.loss)
        valid = np.where(np.fmin.accumulate(own) > 0, own, np.nan)  # of what can be negative, none
    sign = -1.0 if curve.direction == "max" else 1.0
    train_distance = np.clip((sign * metric - curve.loss_target) / unit, -_FAR, _FAR)
    found = [
        train_distance,
        train_distance - distance,
        *(then[past](train_distance) - train_distance for past in (0.5, 0.75)),
    ]
    for loss in (train, valid):
        logs = np.log(np.maximum(loss / first_known(loss), 1e-9))
        found += [logs, *(then[past](logs) - logs for past in (0.5, 0.75))]
    found.append(np.clip(np.log(train / valid), -10.0, 10.0))
    logs = np.log(np.maximum(gradient / first_known(gradient), 1e-9))
    return [*found, logs, then[0.5](logs) - logs]


def _in_roles(curve: Curve) -> dict[str, Floats]:
    """The columns of `ROLES` that a curve has, NaN where nothing was measured yet."""
    found = {}
    for role, names in ROLES.items():
        own = [name for name in names if name in curve.columns and name != curve.metric]
        if own:
            found[role] = _filled(curve.columns[own[0]])
    return found


class _Then:
    """Values when a share of the present cost had been spent, between the points by a line."""

    def __init__(self, past: float, cost: Floats) -> None:
        at = past * cost
        self._after = np.minimum(np.searchsorted(cost, at), len(cost) - 1)
        self._before = np.maximum(self._after - 1, 0)
        gap = cost[self._after] - cost[self._before]
        done = np.where(gap > 0, (at - cost[self._before]) / np.where(gap > 0, gap, 1), 1)
        self._share = np.clip(done, 0, 1)

    def __call__(self, values: Floats) -> Floats:
        # A value that is not known on one side leaves the other.
        low, high = values[self._before], values[self._after]
        between = low + self._share * (high - low)
        found: Floats = np.where(np.isnan(between), np.fmin(low, high), between)
        return found


def _filled(values: Floats) -> Floats:
    """The last known value where one is NaN."""
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[last]
