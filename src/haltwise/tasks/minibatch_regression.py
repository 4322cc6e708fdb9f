"""Linear regression on minibatches: what is seen is noisy, and what counts is never seen."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.random import random_subsets
from haltwise.tasks.base import Evaluation, Observation, TaskBatch, TaskFamily
from haltwise.tasks.regression import LinearRegression, normal_regression

__all__ = ["FAMILIES", "MinibatchRegression", "MinibatchRegressionBatch"]


@final
@dataclass(frozen=True)
class MinibatchRegressionBatch(TaskBatch):
    """StepObservation: beta/2 sum over K random rows of (y_n - x_n^T theta)^2, and its gradient.

    Scored: the same, expected over the rows, with theta* in place of the noisy answers,
    beta/2 K/N sum_n (x_n^T (theta - theta*))^2, which is least, 0, at theta*. Fitting the noise
    costs: where N is small, the scored loss falls and then rises again.
    """

    design: Tensor
    """Shape [B, N, D]."""
    observed: Tensor
    """y_n, shape [B, N]."""
    truth: Tensor
    """theta*, shape [B, D]."""
    seed: Tensor
    """The problem's own stream of minibatches, int64 [B]."""
    rows_per_step: int
    """K, drawn without replacement within a step and afresh at every step."""
    beta: float

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

    def evaluate(self, params: Tensor, step: int) -> Evaluation:
        error = torch.bmm(self.design, (params - self.truth).unsqueeze(-1))
        weighted = self.beta * self.rows_per_step / self.design.shape[1] * error
        excess = 0.5 * (weighted * error).sum((-2, -1))
        excess_grad = torch.bmm(self.design.mT, weighted).squeeze(-1)
        return Evaluation(*self.observe(params, step), excess, excess_grad)


@final
@dataclass(frozen=True)
class MinibatchRegression(TaskFamily):
    """y_n = x_n^T theta* + eps, x ~ s N(0, I), theta* ~ N(0, I / alpha), eps ~ N(0, 1 / beta).

    ln s ~ N(0, spread^2), one s per problem. theta_0 = 0. The N observations of a problem are
    drawn once; every step sees `rows_per_step` of them.
    """

    num_params: int = 10
    num_observations: int = 10
    rows_per_step: int = 3
    spread: float = 0.5
    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        self._regression()  # refuses what is wrong with the rest
        require(
            1 <= self.rows_per_step <= self.num_observations,
            "rows_per_step must lie between 1 and num_observations "
            f"= {self.num_observations}, got {self.rows_per_step}",
        )

    @property
    def dim(self) -> int:
        return self.num_params

    def _regression(self) -> LinearRegression:
        return normal_regression(
            self.num_params,
            self.num_observations,
            alpha=self.alpha,
            spread=self.spread,
            beta=self.beta,
        )

    def _sample(self, num_problems: int, generator: torch.Generator) -> MinibatchRegressionBatch:
        design, truth, mask, _ = self._regression().draw(num_problems, generator)
        noise = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
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
