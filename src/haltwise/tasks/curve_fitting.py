"""Fits of three-parameter curves by nonlinear least squares: decays, growths and peaks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import require_at_least
from haltwise.tasks.base import Observation, SupportsResiduals, TaskBatch, TaskFamily

__all__ = ["FAMILIES", "Curve", "CurveFitting", "CurveFittingBatch"]

Curve = Literal["decay", "growth", "peak"]
_CURVES = get_args(Curve)
_REFERENCE_STEPS = 50  # Levenberg-Marquardt's, from the truth


def _decay(params: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a exp(-e^k x) + c and its derivatives in (a, k, c)."""
    level, log_rate, floor = params.unsqueeze(2).unbind(1)
    exponent = log_rate.exp() * at
    shape = torch.exp(-exponent)
    slopes = (shape, -level * exponent * shape, torch.ones_like(shape))
    return level * shape + floor, torch.stack(slopes, 2)


def _growth(params: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a / (1 + exp(-e^k (x - m))) and its derivatives in (a, k, m)."""
    level, log_rate, middle = params.unsqueeze(2).unbind(1)
    rate = log_rate.exp()
    shape = torch.sigmoid(rate * (at - middle))
    steep = level * rate * shape * (1 - shape)
    return level * shape, torch.stack((shape, steep * (at - middle), -steep), 2)


def _peak(params: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a exp(-(e^k (x - m))^2 / 2) and its derivatives in (a, k, m)."""
    level, log_rate, middle = params.unsqueeze(2).unbind(1)
    rate = log_rate.exp()
    away = rate * (at - middle)
    shape = torch.exp(-away.square() / 2)
    steep = level * shape * away
    return level * shape, torch.stack((shape, -steep * away, steep * rate), 2)


_VALUES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "decay": _decay,
    "growth": _growth,
    "peak": _peak,
}


@final
@dataclass(frozen=True)
class CurveFittingBatch(TaskBatch, SupportsResiduals):
    """f(theta) = 1/2 sum_n ((y_n - c(x_n, theta)) / s)^2, the squares of residuals."""

    at: Tensor
    """x, shape [B, N]."""
    observed: Tensor
    """y, shape [B, N]."""
    noise: Tensor
    """s, the standard deviation of the noise, shape [B]."""
    reference: Tensor
    """Loss at the minimum next to the truth, shape [B]; see `CurveFitting`."""
    curve: Curve
    """c, shared by all problems."""

    @property
    def reference_loss(self) -> Tensor:
        return self.reference

    def observe_residuals(self, params: Tensor) -> tuple[Tensor, Tensor]:
        value, slopes = _VALUES[self.curve](params, self.at)
        noise = self.noise.unsqueeze(1)
        return (value - self.observed) / noise, slopes / noise.unsqueeze(2)

    def observe(self, params: Tensor, step: int) -> Observation:
        del step  # deterministic
        residuals, jacobian = self.observe_residuals(params)
        grad = (residuals.unsqueeze(1) @ jacobian).squeeze(1)
        return Observation(0.5 * residuals.square().sum(1), grad)


@final
@dataclass(frozen=True)
class CurveFitting(TaskFamily):
    """Decays, growths or peaks seen at points of [0, 1] with normal noise.

    A decay is a exp(-e^k x) + c, a growth the logistic curve a / (1 + exp(-e^k (x - m))), a peak
    that of Gauss, a exp(-(e^k (x - m))^2 / 2). Parameters are (a, k, c) or (a, k, m), and theta_0
    is read from the data as one would: heights are those seen, m is where half the height of a
    growth, or the top of a peak, was seen, and k is 1 or 2. Losses have no closed-form minimum and
    may have several; the reference is where Levenberg-Marquardt's method ends from the true
    parameters. Excess losses can therefore be negative where a better minimum lies elsewhere, and
    stay large where a problem ends in a worse one.

    Sources: Bates & Watts 1988, "Nonlinear regression analysis and its applications", for such
    curves; Levenberg 1944 and Marquardt 1963 for the method.
    """

    curve: Curve = "decay"
    """"decay", "growth" or "peak"."""
    num_observations: int = 15
    """N, observations of a problem."""
    min_noise: float = 0.02
    """Least standard deviation of the noise, of curves whose height is about 1."""
    max_noise: float = 0.2
    """Largest standard deviation; s is log-uniform between both."""

    def __post_init__(self) -> None:
        require(
            self.curve in _CURVES, f"curve must be one of {', '.join(_CURVES)}, got {self.curve!r}"
        )
        require_at_least(self.dim, self, "num_observations")
        require(
            0 < self.min_noise <= self.max_noise,
            f"noise needs 0 < min_noise <= max_noise, got {self.min_noise} and {self.max_noise}",
        )

    @property
    def dim(self) -> int:
        return 3

    def _sample(self, num_problems: int, generator: torch.Generator) -> CurveFittingBatch:
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        at = torch.rand(num_problems, self.num_observations, **draw).sort(1).values
        level = torch.exp(0.3 * torch.randn(num_problems, **draw))
        log_rate = torch.randn(num_problems, **draw)
        place = torch.rand(num_problems, **draw)
        if self.curve == "decay":
            third, log_rate = place - 0.5, 1 + 0.7 * log_rate
        else:
            third, log_rate = 0.2 + 0.6 * place, 2 + 0.4 * log_rate
        truth = torch.stack((level, log_rate, third), 1)
        ratio = self.max_noise / self.min_noise
        noise = self.min_noise * ratio ** torch.rand(num_problems, **draw)
        value, _ = _VALUES[self.curve](truth, at)
        observed = value + noise.unsqueeze(1) * torch.randn(value.shape, **draw)
        batch = CurveFittingBatch(
            start=_guess(self.curve, at, observed),
            at=at,
            observed=observed,
            noise=noise,
            reference=torch.zeros_like(noise),
            curve=self.curve,
        )
        return replace(batch, reference=_least_near(batch, truth))


def _guess(curve: Curve, at: Tensor, observed: Tensor) -> Tensor:
    """Parameters that can be read from the data, shape [B, 3]."""
    top = observed.amax(1)
    if curve == "decay":
        floor = observed.amin(1)
        return torch.stack((top - floor, torch.ones_like(top), floor), 1)
    height = top / 2 if curve == "growth" else top
    nearest = (observed - height.unsqueeze(1)).abs().argmin(1, keepdim=True)
    return torch.stack((top, torch.full_like(top, 2.0), at.gather(1, nearest).squeeze(1)), 1)


def _least_near(batch: CurveFittingBatch, params: Tensor) -> Tensor:
    """The loss where Levenberg-Marquardt's method ends that begins at `params`, shape [B]."""
    damping = params.new_full((len(params), 1), 1e-3)
    loss, grad = batch.observe(params, 0)
    for _ in range(_REFERENCE_STEPS):
        _, jacobian = batch.observe_residuals(params)
        normal = jacobian.mT @ jacobian
        diagonal = normal.diagonal(dim1=1, dim2=2)
        added = damping * diagonal + 1e-12 * (1 + diagonal.amax(1, keepdim=True))
        move = torch.linalg.solve(normal + torch.diag_embed(added), grad)
        trial, slope = batch.observe(params - move, 0)
        taken = (trial < loss).unsqueeze(1)
        params, grad = torch.where(taken, params - move, params), torch.where(taken, slope, grad)
        loss = torch.minimum(trial.nan_to_num(torch.inf), loss)
        damping = torch.where(taken, damping / 10, damping * 10).clamp(1e-12, 1e12)
    return loss


FAMILIES = {
    "fit-decay": CurveFitting(),
    "fit-growth": CurveFitting(curve="growth"),
    "fit-peak": CurveFitting(curve="peak"),
}
