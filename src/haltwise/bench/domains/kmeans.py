"""Lloyd's iteration for k-means."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from haltwise.bench.domain import Domain, Sample
from haltwise.curves.curves import Curves, Floats

__all__ = ["KMeansDomain"]

_STEPS = 40
_PROBLEMS = 20
_POINTS = 500


@final
@dataclass(frozen=True)
class KMeansDomain(Domain):
    """k-means from random starts; a group is a law of points and a number of centres."""

    title: ClassVar[str] = "Lloyd's k-means"
    is_made: ClassVar[bool] = True

    def curves(self, sample: Sample) -> Curves:
        groups = [f"points {i % _PROBLEMS}" for i in range(sample.num_runs)]
        root = np.random.SeedSequence([sample.seed, 3])
        laws = [_draw_law(np.random.default_rng(seed)) for seed in root.spawn(_PROBLEMS)]
        runs = [
            _lloyd(*laws[i % _PROBLEMS], np.random.default_rng(seed))
            for i, seed in enumerate(root.spawn(sample.num_runs))
        ]
        return Curves.from_runs(
            runs, metric="loss", group=groups, task=groups, budget=_STEPS, cost_unit="steps"
        )


def _draw_law(generator: np.random.Generator) -> tuple[Floats, float, int]:
    """Centres that points lie around, how far, and how many are fitted."""
    centres = generator.normal(size=(int(generator.integers(1, 25)), int(generator.integers(1, 7))))
    return centres, float(generator.uniform(0.05, 0.8)), int(generator.integers(3, 25))


def _lloyd(
    centres: Floats, width: float, fitted: int, generator: np.random.Generator
) -> dict[str, Floats]:
    """The mean squared distance to the nearest centre, in variances, after each step."""
    points = centres[generator.integers(len(centres), size=_POINTS)]
    points = points + width * generator.normal(size=points.shape)
    unit = points.var(0).sum()
    at = points[generator.choice(_POINTS, fitted, replace=False)]
    size, losses = (points**2).sum(1), []
    for _ in range(_STEPS + 1):
        distance = size[:, None] - 2 * points @ at.T + (at**2).sum(1)
        nearest = distance.argmin(1)
        losses.append(distance[np.arange(_POINTS), nearest].mean() / unit)
        sizes = np.bincount(nearest, minlength=fitted)
        sums = np.stack([np.bincount(nearest, column, fitted) for column in points.T], 1)
        at = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], at)
    return {"cost": np.arange(_STEPS + 1.0), "loss": np.array(losses)}


DOMAINS = {"kmeans": KMeansDomain()}
