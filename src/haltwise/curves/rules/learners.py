"""What all learned rules on curves share: the same inputs, rows and labels.

Each learns from the same features at the same points of the same runs. Where runs stop early, the
price is known to all: improvements are told in prices as well.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self, final

import numpy as np

from haltwise._core.errors import require
from haltwise.curves.curves import Curve, Curves, Floats, Integers
from haltwise.curves.features import FEATURES, curve_features
from haltwise.curves.progress import best_so_far, first_known
from haltwise.curves.rule import CurveRule

__all__ = [
    "MISSING",
    "MOST_ROWS",
    "WORTH",
    "LearnedCurveRule",
    "TrainingPoints",
    "budget_of",
    "filled",
    "input_table",
    "inputs",
    "training_points",
    "with_inputs",
    "worth_features",
]

MISSING = -1e6
"""Stands for an unknown input: scikit-learn's trees refuse a column that is never known."""

MOST_ROWS = 12_000
"""Points that a model is fitted to, spread evenly over the runs."""

_FAR = 1e6  # the largest input
_PARTS = (0.1, 0.25, 0.5)  # of the cost so far, over which improvements are told

WORTH = (
    "last improvement in prices",
    *(f"improvement over the last {part:g} of the cost, in prices" for part in _PARTS),
    "all improvement, in prices of the budget",
    "best loss, in prices of the budget",
    "steps between points, in prices of the budget",
)
"""What `worth_features` tells."""


@final
class _Input(str):
    """The name of a column that holds an input: a user's column is none, whatever it is called."""

    __slots__ = ()


def worth_features(curve: Curve, price: float, last: int | None = None) -> Floats:
    """Improvements in units of the price at each point, shape [n, len(WORTH)].

    Args:
        curve: The curve so far.
        price: What a unit of cost must gain, in units of the metric.
        last: At how many of the last points, all if None.
    """
    so_far, whole = best_so_far(curve.loss), price * budget_of(curve)
    rows = np.arange(curve.num_points)[slice(None) if last is None else slice(-last, None)]
    best, start, cost = so_far[rows], first_known(curve.loss)[rows], curve.cost[rows]
    latest = (rows - 1).clip(0)
    columns = []
    for part in (None, *_PARTS):
        if part is None:
            before = latest
        else:
            begins = cost * (1 - part) + part * curve.cost[:1]
            before = np.searchsorted(curve.cost, begins, side="right") - 1
        paid = price * (cost - curve.cost[before])
        with np.errstate(invalid="ignore", divide="ignore"):
            columns.append((so_far[before] - best) / paid)
    with np.errstate(invalid="ignore"):
        columns.append((start - best) / whole)
        columns.append(best / whole)
        columns.append(np.abs(curve.loss[rows] - curve.loss[latest]) / whole)
    table = np.arcsinh(np.stack(columns, 1))
    return np.where(np.isfinite(table), table, np.nan)


def budget_of(curve: Curve) -> float:
    """The budget, or what was spent where none is known."""
    return curve.budget if np.isfinite(curve.budget) else float(curve.cost[-1])


def inputs(curve: Curve, price: float | None, last: int | None = None) -> Floats:
    """What a learned rule reads at each point of a curve, or the `last` ones, shape [n, F]."""
    features = curve_features(curve, last)
    return features if price is None else np.hstack((features, worth_features(curve, price, last)))


def with_inputs(curves: Curves, price: float | None) -> Curves:
    """The same with the inputs as columns, so that they are computed once for many fits.

    Inputs at another price that were there before are replaced.
    """
    table = np.concatenate([inputs(curve, price) for curve in curves])
    names = (*FEATURES, *(() if price is None else WORTH))
    require(table.shape[1] == len(names), f"expected {len(names)} features, got {table.shape[1]}")
    own = [place for place, name in enumerate(curves.columns) if not isinstance(name, _Input)]
    # A metric of the same name would be found in place of an input; none begins like this.
    columns = (*(curves.columns[place] for place in own), *(_Input(f"\0{name}") for name in names))
    return replace(curves, columns=columns, values=np.hstack((curves.values[:, own], table)))


def input_table(curves: Curves, price: float | None) -> Floats:
    """The inputs at each point of each run, shape [points, F]; see `with_inputs`."""
    ready = [place for place, name in enumerate(curves.columns) if isinstance(name, _Input)]
    if ready:
        return curves.values[:, ready]
    return np.concatenate([inputs(curve, price) for curve in curves])


def filled(table: Floats, missing: float) -> Floats:
    """The inputs with a number in place of what is not known."""
    return np.clip(np.nan_to_num(table, nan=missing), -_FAR, _FAR)


class LearnedCurveRule(CurveRule):
    """A rule whose score is that of a model of the inputs, each point for itself."""

    missing: ClassVar[float] = MISSING
    """Stands for what is not known."""

    price: float | None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    model: Any
    """Of scikit-learn, once fitted; or a number, the score of all points."""

    @abstractmethod
    def fit(self, curves: Curves) -> Self:
        """The rule with a model of the points of recorded runs."""

    def predict(self, table: Floats) -> Floats:
        """The score at each point, shape [points], by its inputs [points, F]."""
        require(self.model is not None, "this rule has learned nothing yet; call fit(curves) first")
        if isinstance(self.model, float):
            return np.full(len(table), self.model)
        logit = getattr(self.model, "decision_function", None)  # of a classifier
        return np.asarray((logit or self.model.predict)(filled(table, self.missing)))

    def score(self, curve: Curve) -> Floats:
        return self.predict(inputs(curve, self.price))

    def last_score(self, curve: Curve) -> float:
        return float(self.predict(inputs(curve, self.price, last=1))[0])

    def scores(self, curves: Curves) -> list[Floats]:
        values = self.predict(input_table(curves, self.price))
        return [np.asarray(part) for part in np.split(values, curves.offset[1:-1])]


class TrainingPoints(NamedTuple):
    """The points that models are fitted to.

    Attributes:
        inputs: Shape [rows, F].
        run: The run of each, shape [rows].
        point: Which point of its run each is, shape [rows].
        worth_going_on: Whether the run goes on to meet its target or, with a price, some later
            point is worth what it costs; 0 or 1, shape [rows].
    """

    inputs: Floats
    run: Integers
    point: Integers
    worth_going_on: Integers


def training_points(curves: Curves, price: float | None) -> TrainingPoints:
    """Points of recorded runs, as many of each; without a price none after a target is met."""
    table = input_table(curves, price)
    success = curves.success if price is None else np.full(curves.num_runs, -1)
    most = max(2, MOST_ROWS // curves.num_runs)
    run, point, label = [], [], []
    for number, curve in enumerate(curves):
        last = success[number] if success[number] >= 0 else curve.num_points
        if last == 0:
            continue
        points = np.unique(np.linspace(0, last - 1, min(most, last)).round().astype(np.int64))
        if price is None:
            worth = np.full(len(points), int(success[number] >= 0))
        else:
            bill = best_so_far(curve.loss) + price * curve.cost
            later = np.append(np.minimum.accumulate(bill[::-1])[::-1][1:], np.inf)
            worth = (later < bill)[points].astype(int)
        run.append(np.full(len(points), number))
        point.append(points)
        label.append(worth)
    require(
        len(run) > 0, "every run meets its target at its first point; there is nothing to learn"
    )
    runs, points = np.concatenate(run), np.concatenate(point)
    return TrainingPoints(table[curves.offset[runs] + points], runs, points, np.concatenate(label))
