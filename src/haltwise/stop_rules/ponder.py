"""Graves' halting: stop where the halting probabilities have summed up to nearly one."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import probability
from haltwise.processes.observation import StepObservation
from haltwise.stop_rules.base import DecisionTime, Memory, StopRule

__all__ = ["DEFAULT_EPSILON", "PonderThreshold"]

DEFAULT_EPSILON = 0.01
"""Graves' own."""


@final
@dataclass(frozen=True)
class PonderThreshold(StopRule):
    """Stop at the first t with h_0 + .. + h_t >= 1 - epsilon (Graves 2016).

    The halting step of `GravesPosterior`, found as steps are taken. Nothing is tuned: epsilon is
    that of meta-training.

    Args:
        epsilon: In (0, 1).
        time: Which of the two halting probabilities is read.
    """

    epsilon: float = DEFAULT_EPSILON
    time: DecisionTime = DecisionTime.AFTER_GRADIENT

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, f"epsilon must lie in (0, 1), got {self.epsilon}")

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the probabilities of halting sum up to at least {1 - self.epsilon:.4g}",)

    def init(self, num_items: int, like: Tensor) -> Memory:
        return {"total": like.new_zeros(num_items)}

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        total = memory["total"] + probability(observation.known("halting_logits")[:, self.time])
        return total >= 1 - self.epsilon, {"total": total}


STOP_RULES = {"ponder-threshold": PonderThreshold}
