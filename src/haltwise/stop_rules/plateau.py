"""Stop where the loss no longer falls."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise.stop_rules.base import LevelRule, StepObservation, Traces, quantile_grid

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
        return (f"the last step lowered the loss by no more than {self.tolerance:.4g}",)

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        return {"last": like.new_full((num_problems,), torch.inf)}

    def statistic(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return seen.loss - memory["last"], {"last": seen.loss}

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor) -> list[Self]:
        gains = traces.loss[:, :-1] - traces.loss[:, 1:]
        return [cls(level) for level in quantile_grid(gains, 200)]
