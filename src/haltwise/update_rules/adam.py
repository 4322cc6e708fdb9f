"""Adam."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from haltwise.update_rules.base import State, UpdateStep
from haltwise.update_rules.hand_designed import HandDesignedRule

__all__ = ["Adam"]


@final
@dataclass(frozen=True)
class Adam(HandDesignedRule):
    """`torch.optim.Adam` (Kingma & Ba 2015, algorithm 1).

    Args:
        learning_rate: Step size, above 0.
        beta1: Share of the gradients' average that is kept, in [0, 1).
        beta2: Share of the squared gradients' average that is kept, in [0, 1).
        epsilon: Added to the root of the squared gradients' average, above 0.
    """

    positive: ClassVar = ("learning_rate", "epsilon")
    fractions: ClassVar = ("beta1", "beta2")

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def init(self, params: Tensor) -> State:
        zeros = torch.zeros_like(params)
        # Steps are counted per problem: the problems of a batch need not have started together.
        return {"first_moment": zeros, "second_moment": zeros, "count": zeros[:, :1]}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        count = state["count"] + 1
        first = self.beta1 * state["first_moment"] + (1 - self.beta1) * grad
        second = self.beta2 * state["second_moment"] + (1 - self.beta2) * grad.square()
        unbiased_first = first / (1 - self.beta1**count)
        unbiased_second = second / (1 - self.beta2**count)
        update = -self.learning_rate * unbiased_first / (unbiased_second.sqrt() + self.epsilon)
        state = {"first_moment": first, "second_moment": second, "count": count}
        return UpdateStep.without_readout(update, state)


RULES = {"adam": Adam}
