"""Expectation maximization of Gaussian mixtures."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from haltwise.bench.domain import Domain, Sample
from haltwise.curves.curves import Curves, Floats

__all__ = ["MixtureDomain"]

_STEPS = 60
_PROBLEMS = 20
_POINTS = 300


@final
@dataclass(frozen=True)
class MixtureDomain(Domain):
    """EM for mixtures with diagonal covariances, scored on points that were not fitted.

    A group is a mixture that points are drawn from; runs differ in the points and in the start.
    """

    title: ClassVar[str] = "EM of Gaussian mixtures"
    is_made: ClassVar[bool] = True
    scored: ClassVar[str | None] = "held_out_loss"

    def curves(self, sample: Sample) -> Curves:
        groups = [f"mixture {i % _PROBLEMS}" for i in range(sample.num_runs)]
        root = np.random.SeedSequence([sample.seed, 2])
        laws = [_Law(np.random.default_rng(seed)) for seed in root.spawn(_PROBLEMS)]
        runs = [
            laws[i % _PROBLEMS].run(np.random.default_rng(seed))
            for i, seed in enumerate(root.spawn(sample.num_runs))
        ]
        return Curves.from_runs(
            runs, metric="loss", group=groups, task=groups, budget=_STEPS, cost_unit="steps of EM"
        )


class _Law:
    """A mixture that points are drawn from, and how many components are fitted to them."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.fitted = int(generator.integers(2, 9))
        num, dim = int(generator.integers(2, 7)), int(generator.integers(1, 6))
        self.means = generator.normal(size=(num, dim)) * generator.uniform(0.5, 3.0)
        self.scales = generator.uniform(0.4, 1.5, (num, dim))
        self.shares = generator.dirichlet(np.full(num, 3.0))

    def draw(self, generator: np.random.Generator) -> Floats:
        which = generator.choice(len(self.shares), _POINTS, p=self.shares)
        noise = generator.normal(size=(_POINTS, self.means.shape[1]))
        points: Floats = self.means[which] + self.scales[which] * noise
        return points

    def run(self, generator: np.random.Generator) -> dict[str, Floats]:
        points, others = self.draw(generator), self.draw(generator)
        means = points[generator.choice(_POINTS, self.fitted, replace=False)]
        variances = np.tile(points.var(0), (self.fitted, 1))
        shares = np.full(self.fitted, 1 / self.fitted)
        losses = []
        for _ in range(_STEPS + 1):
            logs = _log_joint(points, means, variances, shares)
            total = np.logaddexp.reduce(logs, 1)
            held_out = np.logaddexp.reduce(_log_joint(others, means, variances, shares), 1)
            losses.append((-total.mean(), -held_out.mean()))
            weights = np.exp(logs - total[:, None])
            sizes = weights.sum(0) + 1e-9
            shares, means = sizes / sizes.sum(), weights.T @ points / sizes[:, None]
            variances = weights.T @ points**2 / sizes[:, None] - means**2
            variances = np.maximum(variances, 1e-3)
        train, test = np.array(losses).T
        return {"cost": np.arange(_STEPS + 1.0), "loss": train, "held_out_loss": test}


def _log_joint(points: Floats, means: Floats, variances: Floats, shares: Floats) -> Floats:
    """Log p(x, component), shape [points, components]."""
    distance = ((points[:, None] - means) ** 2 / variances).sum(-1)
    volume = np.log(2 * np.pi * variances).sum(-1)
    logs: Floats = np.log(shares) - 0.5 * (distance + volume)
    return logs


DOMAINS = {"mixtures": MixtureDomain()}
