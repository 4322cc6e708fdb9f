"""A family of one's own: parabolas that open more or less widely."""

from dataclasses import dataclass

import torch
from torch import Tensor

from haltwise.tasks import Observation, TaskBatch, TaskFamily


@dataclass(frozen=True)
class ParabolaBatch(TaskBatch):
    """f(theta) = 1/2 sum_i w_i (theta_i - 3)^2."""

    widths: Tensor

    @property
    def reference_loss(self) -> Tensor:
        return self.start.new_zeros(self.num_problems)

    @property
    def minimizer(self) -> Tensor:
        return torch.full_like(self.start, 3.0)

    def observe(self, params: Tensor, step: int) -> Observation:
        away = params - 3.0
        return Observation((self.widths * away.square()).sum(1) / 2, self.widths * away)


@dataclass(frozen=True)
class Parabolas(TaskFamily):
    """Parabolas with widths log-uniform in [1 / spread, spread]."""

    num_params: int = 3
    """Parameters of a problem."""
    spread: float = 4.0
    """Largest width."""

    @property
    def dim(self) -> int:
        return self.num_params

    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        shape = (num_problems, self.num_params)
        exponent = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
        return ParabolaBatch(torch.zeros_like(exponent), self.spread**exponent)
