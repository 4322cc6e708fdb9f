"""Stop where the learned probability of stopping now reaches a threshold."""

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import DecisionTime, LevelRule, Memory, quantile_grid

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
        time: Which of the two hazards is read.
    """

    threshold: float = 0.0
    time: DecisionTime = DecisionTime.AFTER_GRADIENT

    level_setting = "threshold"

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("going on is forecast to gain less than its price",)

    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return observation.known("hazard_logits")[:, self.time], memory

    @classmethod
    def candidates(
        cls,
        trajectory: Trajectory,
        costs: Tensor,
        time: DecisionTime = DecisionTime.AFTER_GRADIENT,
    ) -> list[Self]:
        logits = trajectory.known("hazard_logits")[..., time]
        return [cls(level, time) for level in quantile_grid(logits, 200, never="above")]


STOP_RULES = {"hazard-threshold": HazardThreshold}
