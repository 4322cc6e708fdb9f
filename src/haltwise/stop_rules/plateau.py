"""Stop where the loss no longer falls."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import LevelRule, Memory, quantile_grid

__all__ = ["Plateau"]


@final
@dataclass(frozen=True)
class Plateau(LevelRule):
    """Stop at the first t >= 1 with f(theta_{t-1}) - f(theta_t) <= tolerance."""

    tolerance: float

    level_setting = "tolerance"

    @property
    def level(self) -> float:
        return -self.tolerance

    @property
    def reasons(self) -> tuple[str, ...]:
        size = f"{abs(self.tolerance):.4g}"
        if self.tolerance < 0:
            return (f"the last step raised the loss by {size} or more",)
        if self.tolerance == 0:
            return ("the last step did not lower the loss",)
        return (f"the last step lowered the loss by no more than {size}",)

    def init(self, num_items: int, like: Tensor) -> Memory:
        return {"last": like.new_full((num_items,), torch.inf)}

    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return observation.loss - memory["last"], {"last": observation.loss}

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list[Self]:
        gains = trajectory.loss[:, :-1] - trajectory.loss[:, 1:]
        return [cls(level) for level in quantile_grid(gains, 200, never="below")]


STOP_RULES = {"plateau": Plateau}
