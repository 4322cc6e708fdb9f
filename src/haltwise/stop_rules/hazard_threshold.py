"""Stop where the learned probability of stopping now is high enough."""

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from haltwise.halting.halter import AFTER
from haltwise.stop_rules.base import LevelRule, StepObservation, Traces, quantile_grid

__all__ = ["HazardThreshold"]


@final
@dataclass(frozen=True)
class HazardThreshold(LevelRule):
    """Stop at the first t with log-odds of the hazard rho_t >= threshold.

    See docs/theory.md, Eq. (threshold).

    The hazard weighs all that may still come, not only the next step, so it goes through stretches
    where the loss rises for a while.

    Args:
        threshold: log-odds; 0 is rho = 1/2. Calibrated on separate problems.
        output: `AFTER` or `BEFORE`, see `HaltingOutput`.
    """

    threshold: float = 0.0
    output: int = AFTER

    level_setting = "threshold"

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the log-odds of stopping now are at least {self.threshold:.4g}",)

    def statistic(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return seen.signal("hazard_logits")[:, self.output], memory

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor, output: int = AFTER) -> list[Self]:
        del costs
        logits = traces.signal("hazard_logits")[..., output]
        return [cls(level, output) for level in quantile_grid(logits, 200)]
