"""RMSprop."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from haltwise.update_rules.base import State, UpdateStep
from haltwise.update_rules.hand_designed import HandDesignedRule

__all__ = ["RMSprop"]


@final
@dataclass(frozen=True)
class RMSprop(HandDesignedRule):
    """`torch.optim.RMSprop`, not centred (Tieleman & Hinton 2012).

    Args:
        learning_rate: Step size, above 0.
        decay: Share of the squared gradients' average that is kept, in [0, 1).
        epsilon: Added to the root of that average, above 0.
    """

    positive: ClassVar = ("learning_rate", "epsilon")
    fractions: ClassVar = ("decay",)

    decay: float = 0.99
    epsilon: float = 1e-8

    def init(self, params: Tensor) -> State:
        return {"second_moment": torch.zeros_like(params)}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        second = self.decay * state["second_moment"] + (1 - self.decay) * grad.square()
        update = -self.learning_rate * grad / (second.sqrt() + self.epsilon)
        return UpdateStep.without_readout(update, {"second_moment": second})


RULES = {"rmsprop": RMSprop}
