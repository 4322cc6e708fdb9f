"""Iterations of L-BFGS on regularised logistic regressions."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from haltwise._core.extras import extra
from haltwise.bench.domain import Domain, Sample
from haltwise.curves.curves import Curves, Floats

__all__ = ["LBFGSDomain"]

_STEPS = 60
_PROBLEMS = 20
_ROWS = 200


@final
@dataclass(frozen=True)
class LBFGSDomain(Domain):
    """SciPy's L-BFGS-B on logistic regressions of all conditions; the gradient's norm is seen.

    A group is a design, its condition and its ridge; runs differ in the rows and in the answers.
    """

    title: ClassVar[str] = "L-BFGS on logistic regressions"
    is_made: ClassVar[bool] = True

    def curves(self, sample: Sample) -> Curves:
        groups = [f"design {i % _PROBLEMS}" for i in range(sample.num_runs)]
        root = np.random.SeedSequence([sample.seed, 4])
        laws = [_draw_law(np.random.default_rng(seed)) for seed in root.spawn(_PROBLEMS)]
        runs = [
            _minimize(*laws[i % _PROBLEMS], np.random.default_rng(seed))
            for i, seed in enumerate(root.spawn(sample.num_runs))
        ]
        return Curves.from_runs(
            runs, metric="loss", group=groups, task=groups, budget=_STEPS, cost_unit="iterations"
        )


def _draw_law(generator: np.random.Generator) -> tuple[Floats, Floats, float]:
    """Weights, the scales of the inputs, and the ridge."""
    dim = int(generator.integers(3, 40))
    scales = np.exp(generator.normal(size=dim) * generator.uniform(0, 2.5))
    return generator.normal(size=dim), scales, float(10 ** generator.uniform(-6, -1))


def _minimize(
    weights: Floats, scales: Floats, ridge: float, generator: np.random.Generator
) -> dict[str, Floats]:
    with extra("learn"):
        from scipy.optimize import minimize

    inputs = generator.normal(size=(_ROWS, len(weights))) * scales
    logits = inputs @ (weights / scales) / np.sqrt(len(weights)) * 2
    answers = np.where(generator.random(_ROWS) < 1 / (1 + np.exp(-logits)), 1.0, -1.0)

    def loss(at: Floats) -> tuple[float, Floats]:
        margin = answers * (inputs @ at)
        pull = -answers * np.exp(-np.logaddexp(0, margin))
        value = np.logaddexp(0, -margin).mean() + 0.5 * ridge * at @ at
        return float(value), inputs.T @ pull / _ROWS + ridge * at

    start = np.zeros(len(weights))
    points: list[Any] = [start]
    minimize(
        loss, start, jac=True, method="L-BFGS-B", callback=lambda at: points.append(at.copy()),
        options={"maxiter": _STEPS, "gtol": 1e-9, "ftol": 1e-14},
    )  # fmt: skip
    found = [loss(at) for at in points]
    return {
        "cost": np.arange(float(len(found))),
        "loss": np.array([value for value, _ in found]),
        "grad_norm": np.array([np.sqrt(gradient @ gradient) for _, gradient in found]),
    }


DOMAINS = {"lbfgs": LBFGSDomain()}
