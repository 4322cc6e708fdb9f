"""Stop when the loss has not improved for a while (early stopping)."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import LevelRule, Memory, quantile_grid

__all__ = ["Patience"]

_LENGTHS = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 40, 60, 90, 130, 200, 300, 450, 700, 1000)


@final
@dataclass(frozen=True)
class Patience(LevelRule):
    """Stop when the lowest loss has not fallen by more than `tolerance` for `length` steps."""

    length: int
    tolerance: float = 0.0

    level_setting = "length"

    @property
    def reasons(self) -> tuple[str, ...]:
        return (
            f"the loss has not fallen by more than {self.tolerance:.4g} for {self.length} steps",
        )

    def init(self, num_items: int, like: Tensor) -> Memory:
        return {
            "lowest": like.new_full((num_items,), torch.inf),
            "waited": torch.zeros(num_items, dtype=torch.int64, device=like.device),
        }

    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        improved = observation.loss < memory["lowest"] - self.tolerance
        waited = torch.where(improved, 0, memory["waited"] + 1)
        lowest = torch.where(improved, observation.loss, memory["lowest"])
        return waited.to(lowest), {"lowest": lowest, "waited": waited}

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list[Self]:
        gains = trajectory.loss[:, :-1] - trajectory.loss[:, 1:]
        levels = sorted({0.0, *quantile_grid(gains.clamp_min(0), 40)})
        lengths = [length for length in _LENGTHS if length <= max(12, trajectory.num_steps)]
        return [cls(length, level) for level in levels for length in lengths]


STOP_RULES = {"patience": Patience}
