"""The thesis' open question answered: stop at the first local mode of the posterior."""

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from haltwise.halting.halter import AFTER
from haltwise.stop_rules.base import StepObservation, StopRule, Traces

__all__ = ["PosteriorMode"]


@final
@dataclass(frozen=True)
class PosteriorMode(StopRule):
    """Stop at the first t >= min_steps with delta_t <= 0.

    For a fixed trajectory the bound is largest at delta_t = (log p(x|t+1) - log p(x|t) - c)/tau:
    the rule stops when the forecast gain of a step no longer pays its price,
    docs/theory.md, Eq. (gain).

    Args:
        output: `AFTER` to decide on delta_t with the gradient at theta_t in hand, `BEFORE` to
            decide on the forecast of delta_{t+1} before the gradient at theta_{t+1} is paid for.
        min_steps: Below which the prior is zero; the thesis' Eq. 16-17 sum from 1. Large first
            steps may raise the loss before it falls, and the rule looks no further than one.
    """

    output: int = AFTER
    min_steps: int = 0

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("the next step is forecast to gain less than its price",)

    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        stop = seen.signal("increments")[:, self.output] <= 0
        return stop & (seen.step >= self.min_steps), memory

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor, output: int = AFTER) -> list[Self]:
        del costs
        traces.signal("increments")  # says so if they are missing
        return [cls(output, min_steps) for min_steps in range(traces.num_steps + 1)]
