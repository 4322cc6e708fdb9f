"""Logistic regression, on all observations at every step or on minibatches of them."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.random import random_subsets
from haltwise.tasks.base import DifferentiatedScore, Observation, TaskBatch
from haltwise.tasks.regression import NormalRegression

__all__ = ["FAMILIES", "LogisticRegression", "LogisticRegressionBatch"]


@final
@dataclass(frozen=True)
class LogisticRegressionBatch(TaskBatch):
    """f(theta) = 1/N sum_n log(1 + exp(-y_n x_n^T theta)) + penalty/2 ||theta||^2, y_n = +-1.

    In nats per observation. The score is f above its minimum. The observed loss is the same mean,
    penalty included, over M random observations: an unbiased estimate, and f itself if M = N.
    """

    signed_design: Tensor
    """y_n x_n, shape [B, N, D]."""
    best: Tensor
    """The minimizer of f, shape [B, D]."""
    least: Tensor
    """f there, shape [B]."""
    seed: Tensor
    """Seed of each problem's minibatches, int64 [B]."""
    rows_per_step: int
    """M, drawn without replacement within a step and afresh at every step."""
    penalty: float
    """Weight of the squared norm of theta."""

    @property
    def reference_loss(self) -> Tensor:
        return self.least

    @property
    def minimizer(self) -> Tensor:
        return self.best

    @property
    def stochastic(self) -> bool:
        return self.rows_per_step < self.signed_design.shape[1]

    def observe(self, params: Tensor, step: int) -> Observation:
        if not self.stochastic:
            return _penalized_loss(self.signed_design, params, self.penalty)
        rows = random_subsets(self.seed, step, self.signed_design.shape[1], self.rows_per_step)
        seen = torch.take_along_dim(self.signed_design, rows.unsqueeze(-1), 1)
        return _penalized_loss(seen, params, self.penalty)

    def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
        if not self.stochastic:
            return super().evaluate(params, step)
        score, score_grad = _penalized_loss(self.signed_design, params, self.penalty)
        return DifferentiatedScore(*self.observe(params, step), score - self.least, score_grad)


def _penalized_loss(signed_design: Tensor, params: Tensor, penalty: float) -> Observation:
    margin = torch.bmm(signed_design, params.unsqueeze(-1))
    # Not `softplus`, which is rounded to a line beyond 20.
    loss = -torch.nn.functional.logsigmoid(margin).mean((-2, -1))
    pull = torch.bmm(signed_design.mT, torch.sigmoid(-margin)).squeeze(-1) / margin.shape[1]
    return Observation(loss + 0.5 * penalty * params.square().sum(1), penalty * params - pull)


def _newton(signed_design: Tensor, penalty: float) -> Tensor:
    """Find the minimizers, [B, D], by Newton's method, steps halved until the gradient falls."""
    num_problems, num_rows, dim = signed_design.shape
    params = signed_design.new_zeros(num_problems, dim)
    grad = _penalized_loss(signed_design, params, penalty).grad
    tolerance = 1e-12 * grad.norm(dim=1)
    ridge = penalty * torch.eye(dim, dtype=params.dtype)
    for _ in range(100):  # 10 or so suffice
        done = grad.norm(dim=1) <= tolerance
        if done.all():
            break
        margin = torch.bmm(signed_design, params.unsqueeze(-1))
        weight = torch.sigmoid(margin) * torch.sigmoid(-margin) / num_rows
        hessian = torch.bmm(signed_design.mT, weight * signed_design) + ridge
        direction = torch.linalg.solve(hessian, grad)
        for halvings in range(20):
            trial = params - 0.5**halvings * direction
            trial_grad = _penalized_loss(signed_design, trial, penalty).grad
            better = ~done & (trial_grad.norm(dim=1) < grad.norm(dim=1))
            params = torch.where(better[:, None], trial, params)
            grad = torch.where(better[:, None], trial_grad, grad)
            done |= better
            if done.all():
                break
    return params


@final
@dataclass(frozen=True)
class LogisticRegression(NormalRegression):
    """P(y_n = 1) = sigmoid(x_n^T theta*), with the designs of `NormalRegression`.

    The scale s says how far the classes lie apart. The penalty makes the minimum exist where the
    classes are separable; its default alpha/N makes the minimizer the maximum a posteriori of
    theta* (Bishop 2006, "Pattern Recognition and Machine Learning", section 4.5). Source: the
    designs of the thesis' regression with a logistic likelihood.
    """

    num_observations: int = 200
    """N, observations of a problem."""
    rows_per_step: int = 10
    """M, observations of a step."""
    penalty: float = 0.005
    """Weight of half the squared norm of theta."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.rows_per_step <= self.num_observations,
            "rows_per_step must lie between 1 and num_observations "
            f"= {self.num_observations}, got {self.rows_per_step}",
        )
        require(
            self.penalty > 0,
            f"penalty must be above 0, or a minimum may not exist, got {self.penalty}",
        )

    def _sample(self, num_problems: int, generator: torch.Generator) -> LogisticRegressionBatch:
        design, truth = self._draw(num_problems, generator)
        probability = torch.sigmoid(torch.einsum("bnd,bd->bn", design, truth))
        uniform = torch.rand(probability.shape, generator=generator, dtype=torch.float64)
        signed_design = torch.where(uniform < probability, 1.0, -1.0).unsqueeze(-1) * design
        best = _newton(signed_design, self.penalty)
        return LogisticRegressionBatch(
            start=torch.zeros_like(truth),
            signed_design=signed_design,
            best=best,
            least=_penalized_loss(signed_design, best, self.penalty).loss,
            seed=torch.randint(2**63 - 1, (num_problems,), generator=generator),
            rows_per_step=self.rows_per_step,
            penalty=self.penalty,
        )


FAMILIES = {
    "logistic-10d": LogisticRegression(rows_per_step=200),
    "logistic-10d-noisy": LogisticRegression(),
}
