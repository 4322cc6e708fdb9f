"""Bayesian linear regression, the thesis' first experiment (its section 5.1)."""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from haltwise._errors import require
from haltwise.tasks.base import TaskFamily
from haltwise.tasks.least_squares import LeastSquaresBatch, gaussian_regression

__all__ = ["FAMILIES", "LinearRegression", "sample_design"]


def sample_design(
    num_problems: int,
    num_rows: int,
    num_columns: int,
    generator: torch.Generator,
    *,
    inputs: Literal["uniform", "normal"],
    intercept: bool,
    spread: float,
    correlation: float,
) -> Tensor:
    """Random design matrices, shape [B, N, D], float64.

    Args:
        num_problems: B.
        num_rows: N.
        num_columns: D.
        generator: CPU generator.
        inputs: Law of an input before scaling: U(-2, 2) or N(0, 1).
        intercept: Whether the first column is the constant 1 (thesis Eq. 15).
        spread: sigma of the log-normal factor exp(sigma z), one z per problem, on all columns but
            the intercept: how much problems differ in difficulty.
        correlation: Upper end of the share of variance, drawn per problem from U(0, correlation),
            that the inputs draw from min(2, D) common factors.
    """
    draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    shape = (num_problems, num_rows, num_columns)
    design = (
        4 * torch.rand(shape, **draw) - 2 if inputs == "uniform" else torch.randn(shape, **draw)
    )
    if correlation > 0:
        num_factors = min(2, num_columns)
        factors = torch.randn(num_problems, num_rows, num_factors, **draw)
        loadings = torch.randn(num_problems, num_factors, num_columns, **draw)
        loadings = loadings / loadings.norm(dim=1, keepdim=True)
        share = correlation * torch.rand(num_problems, 1, 1, **draw)
        design = (1 - share).sqrt() * design + share.sqrt() * (factors @ loadings)
    design = design * torch.exp(spread * torch.randn(num_problems, 1, 1, **draw))
    if intercept:
        design[..., 0] = 1
    return design


@final
@dataclass(frozen=True)
class LinearRegression(TaskFamily):
    """y_n = x_n^T theta* + eps, theta* ~ N(0, I / alpha), eps ~ N(0, 1 / beta) (Eq. 15-17).

    The loss is the negative log-likelihood of the noisy y, summed over the N observations, with
    its constants. theta_0 = 0. The thesis leaves the law of xi and N open; the defaults are those
    of its author's later code where it states them.
    """

    num_params: int = 2
    min_observations: int = 10
    """N is log-uniform on [min_observations, max_observations], per problem."""
    max_observations: int = 10
    alpha: float = 1.0
    beta: float = 1.0
    inputs: Literal["uniform", "normal"] = "uniform"
    intercept: bool = True
    spread: float = 0.0
    correlation: float = 0.0

    def __post_init__(self) -> None:
        require(self.num_params >= 1, f"num_params must be at least 1, got {self.num_params}")
        require(
            1 <= self.min_observations <= self.max_observations,
            "the number of observations needs 1 <= min_observations <= max_observations, "
            f"got {self.min_observations} and {self.max_observations}",
        )
        for name in ("alpha", "beta"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        require(self.spread >= 0, f"spread must be at least 0, got {self.spread}")
        require(
            0 <= self.correlation < 1, f"correlation must lie in [0, 1), got {self.correlation}"
        )

    @property
    def dim(self) -> int:
        return self.num_params

    def draw(
        self, num_problems: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Design [B, N, D], true parameters [B, D], row mask [B, N] and counts N [B], float64."""
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        low, high = self.min_observations, self.max_observations
        ratio = (high + 1) / low
        count = (low * ratio ** torch.rand(num_problems, **draw)).floor().clamp(low, high)
        mask = torch.arange(high) < count[:, None]
        design = sample_design(
            num_problems,
            high,
            self.num_params,
            generator,
            inputs=self.inputs,
            intercept=self.intercept,
            spread=self.spread,
            correlation=self.correlation,
        )
        truth = torch.randn(num_problems, self.num_params, **draw) / self.alpha**0.5
        return design * mask.unsqueeze(-1), truth, mask, count

    def _sample(self, num_problems: int, generator: torch.Generator) -> LeastSquaresBatch:
        design, truth, mask, count = self.draw(num_problems, generator)
        noise = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
        observed = (torch.einsum("bnd,bd->bn", design, truth) + noise / self.beta**0.5) * mask
        return gaussian_regression(design, observed, count, self.beta, torch.zeros_like(truth))


FAMILIES = {
    "regression-2d": LinearRegression(alpha=1 / 16, spread=0.7),
    "regression-2d-plain": LinearRegression(),
    "regression-10d": LinearRegression(
        num_params=10,
        min_observations=10,
        max_observations=200,
        inputs="normal",
        intercept=False,
        spread=0.5,
        correlation=0.95,
    ),
    "regression-10d-plain": LinearRegression(num_params=10, inputs="normal", intercept=False),
}
