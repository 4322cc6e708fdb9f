"""Stop where the learned probability of having stopped by now is high enough."""

import math
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor
from torch.nn.functional import logsigmoid

from haltwise._core.errors import require
from haltwise.halting.halter import AFTER
from haltwise.stop_rules.base import StepObservation, StopRule, Traces, quantile_grid

__all__ = ["CumulativeThreshold"]


@final
@dataclass(frozen=True)
class CumulativeThreshold(StopRule):
    """Stop at the first t with sum_{k<=t} q(k) = 1 - prod_{k<=t} (1 - rho_k) >= level.

    Graves' ACT (arXiv 1603.08983, section 2) halts by a sum that reaches 1 - epsilon, too. It
    waits longer than need be where q has a long tail; see `HazardThreshold`.

    Args:
        level: Strictly between 0 and 1.
        output: `AFTER` or `BEFORE`, see `HaltingOutput`.
    """

    level: float = 0.5
    output: int = AFTER

    def __post_init__(self) -> None:
        require(0 < self.level < 1, f"level must lie strictly between 0 and 1, got {self.level}")

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the probability of stopping by now is at least {self.level:.4g}",)

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        return {"log_survival": like.new_zeros(num_problems)}

    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = seen.signal("hazard_logits")[:, self.output]
        log_survival = memory["log_survival"] + logsigmoid(-logits)  # log prod (1 - rho_k)
        return log_survival <= math.log1p(-self.level), {"log_survival": log_survival}

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor, output: int = AFTER) -> list[Self]:
        del costs
        log_survival = logsigmoid(-traces.signal("hazard_logits")[..., output]).cumsum(1)
        levels = {-math.expm1(value) for value in quantile_grid(log_survival, 200)}
        return [cls(level, output) for level in sorted(levels) if 0 < level < 1]
