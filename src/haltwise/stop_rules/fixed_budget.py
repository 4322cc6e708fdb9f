"""Stop every problem after the same number of steps."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise.stop_rules.base import StepObservation, StopRule, Traces

__all__ = ["FixedBudget"]


@final
@dataclass(frozen=True)
class FixedBudget(StopRule):
    """Stop at step `budget`: what everybody does who has no stop rule."""

    budget: int

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"{self.budget} steps are done",)

    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.full_like(seen.loss, seen.step >= self.budget, dtype=torch.bool), memory

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor) -> list[Self]:
        return [cls(budget) for budget in range(traces.num_steps + 1)]
