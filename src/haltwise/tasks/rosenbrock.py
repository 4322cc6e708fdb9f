"""Rosenbrock's valley: a curved, badly scaled and non-convex problem."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import require_at_least
from haltwise.tasks.base import Observation, TaskBatch, TaskFamily

__all__ = ["FAMILIES", "Rosenbrock", "RosenbrockBatch"]


@final
@dataclass(frozen=True)
class RosenbrockBatch(TaskBatch):
    """f(x) = sum_i b (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, with its minimum 0 at x = 1."""

    steepness: Tensor
    """b, shape [B]."""

    @property
    def reference_loss(self) -> Tensor:
        return torch.zeros_like(self.steepness)

    @property
    def minimizer(self) -> Tensor:
        return torch.ones_like(self.start)

    def observe(self, params: Tensor, step: int) -> Observation:
        del step  # deterministic
        left, right = params[:, :-1], params[:, 1:]
        steepness = self.steepness.unsqueeze(1)
        curve = right - left.square()
        slope = 1 - left
        loss = (steepness * curve.square() + slope.square()).sum(1)
        grad = torch.zeros_like(params)
        grad[:, :-1] = -4 * steepness * curve * left - 2 * slope
        grad[:, 1:] += 2 * steepness * curve
        return Observation(loss, grad)


@final
@dataclass(frozen=True)
class Rosenbrock(TaskFamily):
    """Rosenbrock functions whose b is log-uniform on [min_steepness, max_steepness].

    Parameters [D], theta_0 ~ N(0, start_std^2). Source: H. H. Rosenbrock, Computer Journal 3
    (1960), 175-184, where b = 100.
    """

    num_params: int = 2
    """D, parameters of a problem."""
    min_steepness: float = 1.0
    """Least b."""
    max_steepness: float = 100.0
    """Largest b."""
    start_std: float = 1.0
    """Standard deviation of theta_0."""

    def __post_init__(self) -> None:
        require_at_least(2, self, "num_params")
        require_at_least(0, self, "start_std")
        require(
            0 < self.min_steepness <= self.max_steepness,
            "steepness needs 0 < min_steepness <= max_steepness, "
            f"got {self.min_steepness} and {self.max_steepness}",
        )

    @property
    def dim(self) -> int:
        return self.num_params

    def _sample(self, num_problems: int, generator: torch.Generator) -> RosenbrockBatch:
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        ratio = self.max_steepness / self.min_steepness
        return RosenbrockBatch(
            start=self.start_std * torch.randn(num_problems, self.num_params, **draw),
            steepness=self.min_steepness * ratio ** torch.rand(num_problems, **draw),
        )


FAMILIES = {"rosenbrock-2d": Rosenbrock()}
