"""Linear regression on minibatches: observations are noisy, the score is not observed."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.random import random_subsets
from haltwise._core.settings import require_positive
from haltwise.tasks.base import DifferentiatedScore, Observation, TaskBatch
from haltwise.tasks.regression import NormalRegression

__all__ = ["FAMILIES", "MinibatchRegression", "MinibatchRegressionBatch"]


@final
@dataclass(frozen=True)
class MinibatchRegressionBatch(TaskBatch):
    """f_t(theta) = beta/2 sum over M random rows of (y_n - x_n^T theta)^2.

    The score is its expectation over the rows, with the noise-free x_n^T theta* in place of y_n:
    beta/2 M/N sum_n (x_n^T (theta - theta*))^2, which has its minimum 0 at theta*. Fitting the
    noise costs: where N is small, the score falls and then rises again.
    """

    design: Tensor
    """Shape [B, N, D]."""
    observed: Tensor
    """y_n, shape [B, N]."""
    truth: Tensor
    """theta*, shape [B, D]."""
    seed: Tensor
    """Seed of each problem's minibatches, int64 [B]."""
    rows_per_step: int
    """M, drawn without replacement within a step and afresh at every step."""
    beta: float
    """Noise precision."""

    @property
    def reference_loss(self) -> Tensor:
        return torch.zeros_like(self.observed[:, 0])

    @property
    def stochastic(self) -> bool:
        return self.rows_per_step < self.design.shape[1]

    @property
    def minimizer(self) -> Tensor:
        return self.truth

    def observe(self, params: Tensor, step: int) -> Observation:
        rows = random_subsets(self.seed, step, self.design.shape[1], self.rows_per_step)
        design = torch.take_along_dim(self.design, rows.unsqueeze(-1), 1)
        observed = self.observed.gather(1, rows).unsqueeze(-1)
        residual = torch.baddbmm(-observed, design, params.unsqueeze(-1))
        loss = 0.5 * self.beta * residual.square().sum((-2, -1))
        return Observation(loss, self.beta * torch.bmm(design.mT, residual).squeeze(-1))

    def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
        error = torch.bmm(self.design, (params - self.truth).unsqueeze(-1))
        weighted = self.beta * self.rows_per_step / self.design.shape[1] * error
        excess = 0.5 * (weighted * error).sum((-2, -1))
        excess_grad = torch.bmm(self.design.mT, weighted).squeeze(-1)
        return DifferentiatedScore(*self.observe(params, step), excess, excess_grad)


@final
@dataclass(frozen=True)
class MinibatchRegression(NormalRegression):
    """y_n = x_n^T theta* + eps, eps ~ N(0, 1 / beta), with the designs of `NormalRegression`.

    The N observations of a problem are drawn once; every step observes `rows_per_step` of them.
    Source: the thesis' regression (Eq. 15-17), observed on minibatches.
    """

    rows_per_step: int = 3
    """M, observations of a step."""
    beta: float = 1.0
    """Noise precision."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "beta")
        require(
            1 <= self.rows_per_step <= self.num_observations,
            "rows_per_step must lie between 1 and num_observations "
            f"= {self.num_observations}, got {self.rows_per_step}",
        )

    def _sample(self, num_problems: int, generator: torch.Generator) -> MinibatchRegressionBatch:
        design, truth = self._draw(num_problems, generator)
        noise = torch.randn(design.shape[:2], generator=generator, dtype=torch.float64)
        return MinibatchRegressionBatch(
            start=torch.zeros_like(truth),
            design=design,
            observed=torch.einsum("bnd,bd->bn", design, truth) + noise / self.beta**0.5,
            truth=truth,
            seed=torch.randint(2**63 - 1, (num_problems,), generator=generator),
            rows_per_step=self.rows_per_step,
            beta=self.beta,
        )


FAMILIES = {"regression-10d-noisy": MinibatchRegression()}
