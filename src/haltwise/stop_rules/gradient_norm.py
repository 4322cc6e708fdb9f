"""Stop where the gradient is small."""

import math
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from haltwise.stop_rules.base import LevelRule, StepObservation, Traces, quantile_grid

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

    def statistic(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return -seen.signal("log_grad_norm"), memory

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor) -> list[Self]:
        return [cls(level) for level in quantile_grid(traces.signal("log_grad_norm"), 200)]
