"""Stop when the loss has risen too far above its lowest."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise.stop_rules.base import StepObservation, StopRule, Traces, quantile_grid

__all__ = ["Drawdown"]


@final
@dataclass(frozen=True)
class Drawdown(StopRule):
    """Stop at the first t with f(theta_t) > min_{s<=t} f(theta_s) + tolerance, or f not a number.

    Best with `ReturnedIterate.BEST`, which returns the parameters of the lowest loss.
    """

    tolerance: float = 0.0

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the loss is more than {self.tolerance:.4g} above its lowest",)

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        return {"lowest": like.new_full((num_problems,), torch.inf)}

    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        lowest = torch.fmin(memory["lowest"], seen.loss)  # a NaN leaves it as it is
        return ~(seen.loss <= lowest + self.tolerance), {"lowest": lowest}

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor) -> list[Self]:
        loss = traces.loss.nan_to_num(torch.inf, torch.inf)
        rises = loss - loss.cummin(1).values
        rises = rises[(rises > 0) & rises.isfinite()]
        levels = quantile_grid(rises, 200) if len(rises) else []
        return [cls(level) for level in (0.0, *levels)]
