"""Images as products of two thin matrices: not convex, flat at first, with a known minimum."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.extras import extra
from haltwise._core.random import random_subsets
from haltwise._core.settings import require_positive
from haltwise.tasks.base import DifferentiatedScore, Observation, TaskBatch, TaskFamily

__all__ = ["FAMILIES", "DigitFactorization", "MatrixFactorizationBatch"]


@final
@dataclass(frozen=True)
class MatrixFactorizationBatch(TaskBatch):
    """f(U, V) = 1/2 ||A - U V^T||^2, U [rows, rank] and V [columns, rank], in this order in theta.

    All local minima are global, half the squares of the singular values beyond the rank (Eckart &
    Young 1936; Baldi & Hornik 1989); the other stationary points are saddles, one of them at 0. The
    score is f above its minimum. The observed loss is an unbiased estimate, N/M times the sum over
    M random ones of the N entries of A, as in collaborative filtering; f itself if M = N.
    """

    matrix: Tensor
    """A, shape [B, rows, columns]."""
    least: Tensor
    """The minimum, shape [B]."""
    seed: Tensor
    """Seed of each problem's minibatches, int64 [B]."""
    entries_per_step: int
    """M, drawn without replacement within a step and afresh at every step."""

    @property
    def reference_loss(self) -> Tensor:
        return self.least

    @property
    def minimizer(self) -> Tensor:
        rank = self.dim // sum(self.matrix.shape[1:])
        left, singular, right = torch.linalg.svd(self.matrix, full_matrices=False)
        root = singular[:, None, :rank].sqrt()
        factors = (left[..., :rank] * root, right.mT[..., :rank] * root)
        return torch.cat([factor.flatten(1) for factor in factors], 1)

    @property
    def _num_entries(self) -> int:
        return self.matrix[0].numel()

    @property
    def stochastic(self) -> bool:
        return self.entries_per_step < self._num_entries

    def observe(self, params: Tensor, step: int) -> Observation:
        if not self.stochastic:
            return self._weighted_loss(params, None)
        entries = random_subsets(self.seed, step, self._num_entries, self.entries_per_step)
        weight = torch.zeros_like(self.matrix).flatten(1)
        weight = weight.scatter(1, entries, self._num_entries / self.entries_per_step)
        return self._weighted_loss(params, weight.view_as(self.matrix))

    def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
        if not self.stochastic:
            return super().evaluate(params, step)
        score, score_grad = self._weighted_loss(params, None)
        return DifferentiatedScore(*self.observe(params, step), score - self.least, score_grad)

    def _weighted_loss(self, params: Tensor, weight: Tensor | None) -> Observation:
        num_rows, num_columns = self.matrix.shape[1:]
        rank = self.dim // (num_rows + num_columns)
        left = params[:, : num_rows * rank].unflatten(1, (num_rows, rank))
        right = params[:, num_rows * rank :].unflatten(1, (num_columns, rank))
        residual = torch.baddbmm(-self.matrix, left, right.mT)
        weighted = residual if weight is None else weight * residual
        loss = 0.5 * (weighted * residual).sum((1, 2))
        grads = (torch.bmm(weighted, right), torch.bmm(weighted.mT, left))
        return Observation(loss, torch.cat([grad.flatten(1) for grad in grads], 1))


@final
@dataclass(frozen=True)
class DigitFactorization(TaskFamily):
    """One 8 x 8 image of a handwritten digit per problem, intensities scaled to [0, 1].

    Parameters [D = 16 rank], theta_0 ~ N(0, start_std^2): near the saddle at 0, which a small start
    takes long to leave.
    Source: the 1,797 images of scikit-learn's `load_digits` (Alpaydin & Kaynak 1998, UCI).
    """

    rank: int = 2
    """Columns of U and of V."""
    entries_per_step: int = 64
    """M, entries of the image that a step observes."""
    start_std: float = 0.1
    """Standard deviation of theta_0."""

    def __post_init__(self) -> None:
        require(1 <= self.rank <= 8, f"rank must lie between 1 and 8, got {self.rank}")
        require(
            1 <= self.entries_per_step <= 64,
            f"entries_per_step must lie between 1 and 64, got {self.entries_per_step}",
        )
        require_positive(self, "start_std")

    @property
    def dim(self) -> int:
        return 16 * self.rank

    def _sample(self, num_problems: int, generator: torch.Generator) -> MatrixFactorizationBatch:
        with extra("learn"):
            from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images).double() / 16
        matrix = images[torch.randint(len(images), (num_problems,), generator=generator)]
        start = torch.randn(num_problems, self.dim, generator=generator, dtype=torch.float64)
        discarded = torch.linalg.svdvals(matrix)[:, self.rank :]
        return MatrixFactorizationBatch(
            start=self.start_std * start,
            matrix=matrix,
            least=0.5 * discarded.square().sum(1),
            seed=torch.randint(2**63 - 1, (num_problems,), generator=generator),
            entries_per_step=self.entries_per_step,
        )


FAMILIES = {
    "factorization-digits": DigitFactorization(),
    "factorization-digits-noisy": DigitFactorization(entries_per_step=16),
}
