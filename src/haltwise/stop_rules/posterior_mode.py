"""Stop at the first local mode of the posterior (the thesis' open question, answered)."""

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from haltwise._core.errors import require
from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import DecisionTime, Memory, StopRule

__all__ = ["PosteriorMode"]


@final
@dataclass(frozen=True)
class PosteriorMode(StopRule):
    """Stop at the first t >= min_steps with delta_t <= 0.

    For a fixed trajectory the bound is largest at delta_t = (log p(x|t+1) - log p(x|t) - c)/tau:
    the rule stops when the forecast gain of a step no longer pays its price,
    docs/theory.md, Eq. (gain).

    Args:
        time: Whether delta_t is read with the gradient at theta_t in hand, or the forecast of
            delta_{t+1} before the gradient at theta_{t+1} is paid for.
        min_steps: Below which the prior is zero; the thesis' Eq. 16-17 sum from 1. Large first
            steps may raise the loss before it falls, and the rule looks no further than one.
    """

    time: DecisionTime = DecisionTime.AFTER_GRADIENT
    min_steps: int = 0

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("another step is forecast to gain less than its price",)

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        increments = observation.known("increments")
        if increments.ndim == 1:
            require(
                self.time is DecisionTime.AFTER_GRADIENT,
                "these increments decide with the gradient in hand alone; choose "
                "PosteriorMode(DecisionTime.AFTER_GRADIENT)",
            )
            increments = increments.unsqueeze(1)
        stop = increments[:, self.time] <= 0
        return stop & (observation.step >= self.min_steps), memory

    @classmethod
    def candidates(
        cls,
        trajectory: Trajectory,
        costs: Tensor,
        time: DecisionTime = DecisionTime.AFTER_GRADIENT,
    ) -> list[Self]:
        trajectory.known("increments")  # says so if they are missing
        return [cls(time, min_steps) for min_steps in range(trajectory.num_steps + 1)]


STOP_RULES = {"posterior-mode": PosteriorMode}
