"""Stop every problem after the same number of steps."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import Memory, StopRule

__all__ = ["FixedBudget"]


@final
@dataclass(frozen=True)
class FixedBudget(StopRule):
    """Stop at step `budget`: what everybody does who has no stop rule."""

    budget: int

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"{self.budget} steps are done",)

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        none = torch.zeros_like(observation.loss, dtype=torch.bool)
        return none | (observation.step >= self.budget), memory

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list[Self]:
        return [cls(budget) for budget in range(trajectory.num_steps + 1)]


STOP_RULES = {"fixed-budget": FixedBudget}
