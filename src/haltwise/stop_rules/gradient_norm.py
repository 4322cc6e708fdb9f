"""Stop where the gradient is small."""

import math
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import LevelRule, Memory, quantile_grid

__all__ = ["GradientNorm"]


@final
@dataclass(frozen=True)
class GradientNorm(LevelRule):
    """Stop at the first t with log rms gradient <= log_tolerance."""

    log_tolerance: float

    level_setting = "log_tolerance"

    @property
    def level(self) -> float:
        return -self.log_tolerance

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the gradient's rms is at most {math.exp(self.log_tolerance):.4g}",)

    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return -observation.known("log_grad_norm"), memory

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list[Self]:
        return [
            cls(level)
            for level in quantile_grid(trajectory.known("log_grad_norm"), 200, never="below")
        ]


STOP_RULES = {"gradient-norm": GradientNorm}
