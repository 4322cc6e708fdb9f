"""Bayesian linear regression, the thesis' first experiment (its section 5.1)."""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import require_at_least, require_positive
from haltwise.tasks.base import TaskFamily
from haltwise.tasks.least_squares import LeastSquaresBatch, gaussian_regression, row_counts

__all__ = ["FAMILIES", "TRAINING_DEFAULTS", "LinearRegression", "NormalRegression"]


@final
@dataclass(frozen=True)
class LinearRegression(TaskFamily):
    """y_n = x_n^T theta* + eps, theta* ~ N(0, I / alpha), eps ~ N(0, 1 / beta) (Eq. 15-17).

    The loss is the negative log-likelihood of the noisy y, summed over the N observations, with
    its constants. Parameters [D], theta_0 = 0. Source: the thesis, section 5.1. It leaves the
    distribution of x and N open; the defaults are those of its author's later code where it states
    them.
    """

    num_params: int = 2
    """D, parameters of a problem."""
    min_observations: int = 10
    """N is log-uniform on [min_observations, max_observations], per problem."""
    max_observations: int = 10
    """Largest N."""
    alpha: float = 1.0
    """Precision of theta*."""
    beta: float = 1.0
    """Noise precision."""
    inputs: Literal["uniform", "normal"] = "uniform"
    """Distribution of an input before scaling, U(-2, 2) or N(0, 1)."""
    intercept: bool = True
    """Whether the first input is the constant 1."""
    spread: float = 0.0
    """Standard deviation of ln s, the scale of a problem's inputs but the intercept."""
    condition_decades: float = 0.0
    """How correlated inputs may be: their covariance has eigenvalues 10^(-k u^2), u from U(0, 1)
    each and k from U(0, condition_decades) per problem, in a random orthogonal basis."""
    signal_decades: float = 0.0
    """theta* is scaled by 10^(-u signal_decades), u from U(0, 1) per problem."""
    spectral_norm: float | None = None
    """If given, each design, its intercept too, is scaled to this largest singular value; the
    loss then has the greatest curvature beta spectral_norm^2 in every problem."""

    def __post_init__(self) -> None:
        require(
            self.inputs in ("uniform", "normal"),
            f"inputs must be 'uniform' or 'normal', got {self.inputs!r}",
        )
        require_at_least(1, self, "num_params")
        require(
            1 <= self.min_observations <= self.max_observations,
            "the number of observations needs 1 <= min_observations <= max_observations, "
            f"got {self.min_observations} and {self.max_observations}",
        )
        require_positive(self, "alpha", "beta", "spectral_norm")
        require_at_least(0, self, "spread", "condition_decades", "signal_decades")

    @property
    def dim(self) -> int:
        return self.num_params

    def draw(
        self, num_problems: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw design [B, N, D], theta* [B, D], row mask [B, N] and counts N [B], float64."""
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        low, high = self.min_observations, self.max_observations
        count = row_counts(num_problems, low, high, generator)
        mask = torch.arange(high) < count[:, None]
        design = self._design(num_problems, generator)
        truth = torch.randn(num_problems, self.num_params, **draw) / self.alpha**0.5
        if self.signal_decades > 0:
            truth = truth * 10 ** (-self.signal_decades * torch.rand(num_problems, 1, **draw))
        design = design * mask.unsqueeze(-1)
        if self.spectral_norm is not None:
            largest = torch.linalg.matrix_norm(design, 2)
            design = design * (self.spectral_norm / largest)[:, None, None]
        return design, truth, mask, count

    def _design(self, num_problems: int, generator: torch.Generator) -> Tensor:
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        shape = (num_problems, self.max_observations, self.num_params)
        if self.inputs == "uniform":
            design = 4 * torch.rand(shape, **draw) - 2
        else:
            design = torch.randn(shape, **draw)
        if self.condition_decades > 0:
            decades = self.condition_decades * torch.rand(num_problems, 1, **draw)
            uniform = torch.rand(num_problems, self.num_params, **draw)
            square = torch.randn(num_problems, self.num_params, self.num_params, **draw)
            basis = torch.linalg.qr(square).Q
            mixing = 10 ** (-0.5 * decades * uniform.square()).unsqueeze(2) * basis.mT
            design = design @ (mixing / mixing.norm(dim=1, keepdim=True))
        design = design * torch.exp(self.spread * torch.randn(num_problems, 1, 1, **draw))
        if self.intercept:
            design[..., 0] = 1  # thesis Eq. 15
        return design

    def _sample(self, num_problems: int, generator: torch.Generator) -> LeastSquaresBatch:
        design, truth, mask, count = self.draw(num_problems, generator)
        noise = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
        observed = (torch.einsum("bnd,bd->bn", design, truth) + noise / self.beta**0.5) * mask
        return gaussian_regression(design, observed, count, self.beta, torch.zeros_like(truth))


@dataclass(frozen=True)
class NormalRegression(TaskFamily):
    """The base class of regressions on inputs x ~ s N(0, I), theta* ~ N(0, I / alpha).

    ln s ~ N(0, spread^2), one s per problem. Parameters [D], theta_0 = 0.
    """

    num_params: int = 10
    """D, parameters of a problem."""
    num_observations: int = 10
    """N, observations of a problem."""
    spread: float = 0.5
    """Standard deviation of ln s."""
    alpha: float = 1.0
    """Precision of theta*."""

    def __post_init__(self) -> None:
        self._regression()  # checks the settings

    @property
    def dim(self) -> int:
        return self.num_params

    def _regression(self) -> LinearRegression:
        return LinearRegression(
            num_params=self.num_params,
            min_observations=self.num_observations,
            max_observations=self.num_observations,
            alpha=self.alpha,
            inputs="normal",
            intercept=False,
            spread=self.spread,
        )

    def _draw(self, num_problems: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw designs [B, N, D] and theta* [B, D], float64."""
        design, truth, _, _ = self._regression().draw(num_problems, generator)
        return design, truth


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
        condition_decades=3.0,
        signal_decades=1.0,
    ),
    "regression-10d-plain": LinearRegression(num_params=10, inputs="normal", intercept=False),
    "regression-10d-smooth": LinearRegression(
        num_params=10, inputs="normal", intercept=False, spectral_norm=5.0
    ),
}

TRAINING_DEFAULTS = {"regression-2d": {"horizon": 40, "joint": {"batch_size": 256}}}
