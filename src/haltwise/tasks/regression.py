"""Bayesian linear regression, the thesis' first experiment (its section 5.1)."""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.tasks.base import TaskFamily
from haltwise.tasks.least_squares import LeastSquaresBatch, gaussian_regression

__all__ = [
    "FAMILIES",
    "TRAINING_DEFAULTS",
    "LinearRegression",
    "normal_regression",
    "sample_design",
]


def sample_design(
    num_problems: int,
    num_rows: int,
    num_columns: int,
    generator: torch.Generator,
    *,
    inputs: Literal["uniform", "normal"],
    intercept: bool,
    spread: float,
    condition_decades: float,
) -> Tensor:
    """Draw design matrices, shape [B, N, D], float64.

    Args:
        num_problems: B.
        num_rows: N.
        num_columns: D.
        generator: CPU generator.
        inputs: Distribution of an input before scaling: U(-2, 2) or N(0, 1).
        intercept: Whether the first column is the constant 1 (thesis Eq. 15).
        spread: sigma of the log-normal factor exp(sigma z), one z per problem, on all columns but
            the intercept: how much problems differ in difficulty.
        condition_decades: How correlated inputs may be. The covariance of a row has eigenvalues
            10^(-k u^2), u from U(0, 1) each and k from U(0, condition_decades) per problem, in a
            random orthogonal basis; columns keep unit size. At 0 inputs are independent.
    """
    draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    shape = (num_problems, num_rows, num_columns)
    design = (
        4 * torch.rand(shape, **draw) - 2 if inputs == "uniform" else torch.randn(shape, **draw)
    )
    if condition_decades > 0:
        decades = condition_decades * torch.rand(num_problems, 1, **draw)
        uniform = torch.rand(num_problems, num_columns, **draw)
        square = torch.randn(num_problems, num_columns, num_columns, **draw)
        basis = torch.linalg.qr(square).Q
        mixing = 10 ** (-0.5 * decades * uniform.square()).unsqueeze(2) * basis.mT
        design = design @ (mixing / mixing.norm(dim=1, keepdim=True))
    design = design * torch.exp(spread * torch.randn(num_problems, 1, 1, **draw))
    if intercept:
        design[..., 0] = 1
    return design


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
    """Standard deviation of ln s, the scale of a problem's design."""
    condition_decades: float = 0.0
    """How correlated inputs may be: decades over which the eigenvalues of their covariance
    spread."""
    signal_decades: float = 0.0
    """theta* is scaled by 10^(-u signal_decades), u from U(0, 1) per problem."""
    spectral_norm: float | None = None
    """If given, each design, its intercept too, is scaled to this largest singular value; the
    loss then has the greatest curvature beta spectral_norm^2 in every problem."""

    def __post_init__(self) -> None:
        require(self.num_params >= 1, f"num_params must be at least 1, got {self.num_params}")
        require(
            1 <= self.min_observations <= self.max_observations,
            "the number of observations needs 1 <= min_observations <= max_observations, "
            f"got {self.min_observations} and {self.max_observations}",
        )
        for name in ("alpha", "beta"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        require(
            self.inputs in ("uniform", "normal"),
            f"inputs must be 'uniform' or 'normal', got {self.inputs!r}",
        )
        for name in ("spread", "condition_decades", "signal_decades"):
            require(
                getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}"
            )
        require(
            self.spectral_norm is None or self.spectral_norm > 0,
            f"spectral_norm must be above 0, or None to scale none, got {self.spectral_norm}",
        )

    @property
    def dim(self) -> int:
        return self.num_params

    def draw(
        self, num_problems: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw design [B, N, D], theta* [B, D], row mask [B, N] and counts N [B], float64."""
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
            condition_decades=self.condition_decades,
        )
        truth = torch.randn(num_problems, self.num_params, **draw) / self.alpha**0.5
        if self.signal_decades > 0:
            truth = truth * 10 ** (-self.signal_decades * torch.rand(num_problems, 1, **draw))
        design = design * mask.unsqueeze(-1)
        if self.spectral_norm is not None:
            largest = torch.linalg.matrix_norm(design, 2)
            design = design * (self.spectral_norm / largest)[:, None, None]
        return design, truth, mask, count

    def _sample(self, num_problems: int, generator: torch.Generator) -> LeastSquaresBatch:
        design, truth, mask, count = self.draw(num_problems, generator)
        noise = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
        observed = (torch.einsum("bnd,bd->bn", design, truth) + noise / self.beta**0.5) * mask
        return gaussian_regression(design, observed, count, self.beta, torch.zeros_like(truth))


def normal_regression(
    num_params: int, num_observations: int, *, alpha: float, spread: float, beta: float = 1.0
) -> LinearRegression:
    """Make the family whose designs other regressions share: N(0, 1) inputs, no intercept, one N.

    Args:
        num_params: D.
        num_observations: N.
        alpha: Precision of the true parameters.
        spread: sigma of the problems' scales, see `sample_design`.
        beta: Noise precision.

    Raises:
        InputError: A setting is impossible.
    """
    return LinearRegression(
        num_params=num_params,
        min_observations=num_observations,
        max_observations=num_observations,
        alpha=alpha,
        beta=beta,
        inputs="normal",
        intercept=False,
        spread=spread,
    )


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
