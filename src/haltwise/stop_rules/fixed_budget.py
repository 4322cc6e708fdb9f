"""Stop every problem after the same number of steps."""

from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import LevelRule, Memory

__all__ = ["FixedBudget"]


@final
@dataclass(frozen=True)
class FixedBudget(LevelRule):
    """Stop at step `budget`: what everybody does who has no stop rule."""

    budget: int

    level_setting: ClassVar[str] = "budget"

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"{self.budget} steps are done",)

    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        # Items that began at different times each have a step of their own.
        return torch.zeros_like(observation.loss, dtype=torch.float32) + observation.step, memory

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list[Self]:
        return [cls(budget) for budget in range(trajectory.num_steps + 1)]


STOP_RULES = {"fixed-budget": FixedBudget}
