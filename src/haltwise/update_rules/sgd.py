"""Gradient descent, with or without momentum."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.update_rules.base import State, UpdateStep
from haltwise.update_rules.hand_designed import HandDesignedRule

__all__ = ["SGD"]


@final
@dataclass(frozen=True)
class SGD(HandDesignedRule):
    """Gradient descent with heavy-ball or Nesterov momentum (`torch.optim.SGD`).

    Args:
        learning_rate: Step size, above 0.
        momentum: Share of the velocity that is kept, in [0, 1).
        nesterov: Whether the momentum is Nesterov's; needs `momentum`.
    """

    fractions: ClassVar = ("momentum",)

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.momentum > 0 or not self.nesterov, "nesterov needs a momentum above 0, got 0")

    def init(self, params: Tensor) -> State:
        return {"velocity": torch.zeros_like(params)} if self.momentum else {}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        if not self.momentum:
            return UpdateStep.without_readout(-self.learning_rate * grad, {})
        velocity = self.momentum * state["velocity"] + grad
        direction = grad + self.momentum * velocity if self.nesterov else velocity
        return UpdateStep.without_readout(-self.learning_rate * direction, {"velocity": velocity})


RULES = {"sgd": SGD}
