"""Random quadratics of Andrychowicz et al. 2016 ("L2L"), for replication."""

from dataclasses import dataclass
from typing import Any, final

import torch

from haltwise._core.settings import require_at_least
from haltwise.tasks.base import TaskFamily
from haltwise.tasks.least_squares import LeastSquaresBatch

__all__ = ["FAMILIES", "TRAINING_DEFAULTS", "Quadratic"]


@final
@dataclass(frozen=True)
class Quadratic(TaskFamily):
    """f(theta) = ||W theta - y||^2 with W [D, D] and y [D] from U(0, 1).

    Parameters [D], theta_0 ~ N(0, start_std^2). Source: arXiv 1606.04474, section 3.1. The paper
    states Gaussian, but its code draws uniforms, and its published figures agree with the code.
    """

    num_params: int = 10
    """D, parameters of a problem."""
    start_std: float = 0.01
    """Standard deviation of theta_0."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_params")
        require_at_least(0, self, "start_std")

    @property
    def dim(self) -> int:
        return self.num_params

    def _sample(self, num_problems: int, generator: torch.Generator) -> LeastSquaresBatch:
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        size = self.num_params
        return LeastSquaresBatch(
            factor=torch.rand(num_problems, size, size, **draw),
            target=torch.rand(num_problems, size, **draw),
            start=self.start_std * torch.randn(num_problems, size, **draw),
            minimum=torch.zeros(num_problems, dtype=torch.float64),
            scale=torch.ones(num_problems, dtype=torch.float64),
        )


FAMILIES = {"quadratic-10d": Quadratic()}

TRAINING_DEFAULTS = {
    "quadratic-10d": {
        "horizon": 100,
        "price": 0.003,
        "joint": {"sum_weight": 4.0, "warmup": 0.5},
    }
}
