"""Two rules on curves that are plain enough to be checked by hand."""

from typing import Any

import numpy as np

from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.features import FEATURES
from haltwise.curves.model import CurveCard, CurveModel, Loss
from haltwise.curves.rule import CurveRule
from haltwise.interfaces.run_monitor import RunMonitor

__all__ = ["Median", "Patience", "exponential_runs", "patience", "small_model", "stop_of"]


class Patience(CurveRule):
    """The score is minus the number of points since the best one."""

    def score(self, curve: Curve) -> Floats:
        best, since, scores = np.inf, 0, []
        for loss in curve.loss:
            since = 0 if loss < best else since + 1
            best = min(best, loss)
            scores.append(-since)
        return np.array(scores, float)

    def why(self, curve: Curve) -> str:
        return f"nothing was better for {-self.score(curve)[-1]:.0f} points"


class Median(CurveRule):
    """The score is by how much the loss lies below the median of those learned from."""

    def __init__(self) -> None:
        self.curves: Curves | None = None
        self.num_fits = 0

    def fit(self, curves: Curves) -> "Median":
        self.curves, self.num_fits = curves, self.num_fits + 1
        return self

    def score(self, curve: Curve) -> Floats:
        assert self.curves is not None
        medians = [
            np.median([other.loss[other.cost == cost] for other in self.curves])
            for cost in curve.cost
        ]
        return np.array(medians) - curve.loss


def patience(num: int, **settings: Any) -> RunMonitor:
    """A monitor that stops at the `num`-th point without a better one."""
    return RunMonitor(Patience(), level=0.5 - num, **settings)


def stop_of(values: list[float], num: int, min_points: int = 3, direction: str = "min") -> int:
    """The number of points after which `patience(num)` stops, or all."""
    losses = [-value if direction == "max" else value for value in values]
    for stop in range(min_points, len(losses) + 1):
        if stop - 1 - losses.index(min(losses[:stop])) >= num:
            return stop
    return len(values)


def exponential_runs(num: int, seed: int, num_points: int = 30) -> Curves:
    """Runs that fall exponentially from 3 to ends of which half are below the target, 1."""
    rng = np.random.default_rng(seed)
    ends = rng.uniform(0.2, 1.8, num)
    losses = ends[:, None] + (3 - ends[:, None]) * 0.8 ** np.arange(num_points)
    losses += 0.02 * rng.normal(size=losses.shape)
    groups = [str(i % 5) for i in range(num)]
    return Curves.from_matrix(losses, target=1.0, group=groups)


class _Near:
    """A forecast: the nearer the best metric is to the target, the surer."""

    def chance(self, features: Floats) -> Floats:
        distance = features[:, FEATURES.index("best")]
        return np.clip(1 - distance, 0.01, 0.99)


def small_model() -> CurveModel:
    """A model with levels, learned on nothing."""
    levels = {"0.01": Loss(0.02, 0.1, 0.01), "0.05": Loss(0.024, 0.3, 0.05)}
    card = CurveCard(metric="loss", cost_unit="steps", cost_scale=29.0, levels=levels)
    forecast: Any = _Near()
    return CurveModel(forecast, card)
