"""Adaptive computation time (Graves 2016, arXiv 1603.08983): ponder cost and summed halting."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

from torch import Tensor

from haltwise._core.errors import require
from haltwise.halting.methods.base import HaltingExamples, HaltingMethod
from haltwise.halting.objectives import ponder_objective
from haltwise.halting.posteriors import GravesPosterior, Posterior
from haltwise.stop_rules import DecisionTime, PonderThreshold, StopRule
from haltwise.stop_rules.ponder import DEFAULT_EPSILON

__all__ = ["Graves"]

_FIRST_LOGIT = -2.0  # log-odds of a new halter: it goes on for about 8 steps
_AFTER, _BEFORE = DecisionTime.AFTER_GRADIENT, DecisionTime.BEFORE_GRADIENT


@final
@dataclass(frozen=True)
class Graves(HaltingMethod):
    """Learn halting probabilities that stop where they have summed up to nearly one.

    Outputs `halting_logits` [..., 2], log-odds of h_t for both times of decision.
    """

    epsilon: float = DEFAULT_EPSILON
    """What is left of the unit to let a single step halt."""

    output_sizes: ClassVar[Mapping[str, int]] = MappingProxyType({"halting_logits": 2})

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, f"epsilon must lie in (0, 1), got {self.epsilon}")

    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return {name: value + _FIRST_LOGIT for name, value in self.split(raw).items()}

    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        return GravesPosterior(outputs["halting_logits"][..., time], self.epsilon)

    def objective(self, examples: HaltingExamples) -> Tensor:
        """Expected loss and ponder cost, the mean over both times of decision."""
        logits, excess = examples.outputs["halting_logits"], examples.excess
        cost = sum(
            ponder_objective(losses, GravesPosterior(own, self.epsilon), price=examples.price)
            for losses, own in (
                (excess, logits[..., _AFTER]),
                (excess[:, 1:], logits[:, :-1, _BEFORE]),
            )
        )
        return cost / (2 * examples.price)

    def exit_objective(self, examples: HaltingExamples) -> Tensor:
        posterior = GravesPosterior(examples.outputs["halting_logits"][..., _AFTER], self.epsilon)
        return ponder_objective(examples.excess, posterior, price=examples.price) / examples.price

    def rule(self, time: DecisionTime) -> StopRule:
        return PonderThreshold(self.epsilon, time)


METHODS = {"graves": Graves}
