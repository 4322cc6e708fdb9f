"""Sums of squares of linear residuals, at a cost and accuracy that do not depend on N."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.tasks.base import DifferentiatedScore, Observation, TaskBatch

__all__ = ["LeastSquaresBatch", "gaussian_regression", "row_counts"]


@final
@dataclass(frozen=True)
class LeastSquaresBatch(TaskBatch):
    """f(theta) = minimum + scale ||factor theta - target||^2, the second term reaching zero.

    The excess loss is the quadratic form itself, never the difference of two large losses, and
    the condition number is that of `factor`, not its square.
    """

    factor: Tensor
    """Shape [B, N, D]; N <= D rows suffice for any number of observations."""
    target: Tensor
    """Shape [B, N], in the range of `factor`."""
    minimum: Tensor
    """The least loss, shape [B]."""
    scale: Tensor
    """Weight of the squares, shape [B]."""

    @property
    def reference_loss(self) -> Tensor:
        return self.minimum

    @property
    def minimizer(self) -> Tensor:
        # Not `torch.linalg.lstsq`: the rank that its default driver finds is wrong at times.
        inverse: Tensor = torch.linalg.pinv(self.factor)
        return (inverse @ self.target.unsqueeze(-1)).squeeze(-1)

    def observe(self, params: Tensor, step: int) -> Observation:
        loss, grad, _, _ = self.evaluate(params, step)
        return Observation(loss, grad)

    def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
        del step  # deterministic
        # Few operations: on small problems, dispatching them is what takes the time.
        column = params.unsqueeze(-1)
        residual = torch.baddbmm(self.target.unsqueeze(-1), self.factor, column, beta=-1)
        weighted = residual * self.scale.view(-1, 1, 1)
        excess = torch.bmm(weighted.mT, residual).view(-1)
        grad = torch.baddbmm(column, self.factor.mT, weighted, beta=0, alpha=2).squeeze(-1)
        return DifferentiatedScore(self.minimum + excess, grad, excess, grad)


def row_counts(num_problems: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Draw numbers of rows, log-uniform on [low, high], shape [B], float64."""
    uniform = torch.rand(num_problems, generator=generator, dtype=torch.float64)
    return (low * ((high + 1) / low) ** uniform).floor().clamp(low, high)


def gaussian_regression(
    design: Tensor, observed: Tensor, count: Tensor, beta: float, start: Tensor
) -> LeastSquaresBatch:
    """Make linear regressions: negative log-likelihood with known noise (thesis Eq. 16-17).

    See docs/theory.md, Eq. (likelihood).

    f(theta) = beta/2 sum_n (y_n - x_n^T theta)^2 - N/2 log beta + N/2 log 2 pi, reduced once by a
    singular value decomposition of the design to D residuals; every later step costs O(D^2).

    Args:
        design: Rows x_n, shape [B, max N, D], float64; rows beyond a problem's count are zero.
        observed: y_n, shape [B, max N], float64; zero beyond the count.
        count: N of each problem, shape [B].
        beta: Noise precision, 1 / variance of y given x.
        start: theta_0, shape [B, D].

    Returns:
        The batch, in float64.

    Raises:
        InputError: A value of `design` or `observed` is not finite.
    """
    for name, value in (("design", design), ("observations", observed)):
        bad = int((~value.isfinite()).flatten(1).any(1).sum())
        require(
            bad == 0,
            f"the {name} of {bad} of {len(value)} regressions hold NaN or infinity; "
            "drop or impute those rows first",
        )
    left, singular, right = torch.linalg.svd(design, full_matrices=False)
    cutoff = singular[:, :1] * max(design.shape[1:]) * torch.finfo(design.dtype).eps
    kept = singular > cutoff  # a rank-deficient design leaves directions that do not matter
    target = torch.where(kept, torch.einsum("bnm,bn->bm", left, observed), 0)
    factor = torch.where(kept, singular, 0).unsqueeze(-1) * right
    residual = observed - torch.einsum("bnm,bm->bn", left, target)
    log_normalizer = 0.5 * count * math.log(2 * math.pi / beta)
    return LeastSquaresBatch(
        start=start,
        factor=factor,
        target=target,
        minimum=0.5 * beta * residual.square().sum(1) + log_normalizer,
        scale=torch.full_like(log_normalizer, 0.5 * beta, dtype=design.dtype),
    )
