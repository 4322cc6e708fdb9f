"""Graves' halting: stop where the halting probabilities have summed up to nearly one."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from haltwise._core.errors import require
from haltwise.halting.halter import AFTER
from haltwise.halting.posteriors.graves import DEFAULT_EPSILON
from haltwise.stop_rules.base import StepObservation, StopRule

__all__ = ["PonderThreshold"]


@final
@dataclass(frozen=True)
class PonderThreshold(StopRule):
    """Stop at the first t with h_0 + .. + h_t >= 1 - epsilon (Graves 2016).

    The halting step of `GravesPosterior`, found as steps are taken. Nothing is tuned: epsilon is
    that of meta-training.

    Args:
        epsilon: In (0, 1).
        output: `AFTER` or `BEFORE`, see `HaltingOutput`, whose hazard logits are those of h.
    """

    epsilon: float = DEFAULT_EPSILON
    output: int = AFTER

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, f"epsilon must lie in (0, 1), got {self.epsilon}")

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the probabilities of halting sum up to at least {1 - self.epsilon:.4g}",)

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        return {"total": like.new_zeros(num_problems)}

    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total = memory["total"] + seen.signal("hazard_logits")[:, self.output].sigmoid()
        return total >= 1 - self.epsilon, {"total": total}
