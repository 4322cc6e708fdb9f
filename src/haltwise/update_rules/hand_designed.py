"""The rules people use, with the update formulas of `torch.optim`."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.update_rules.base import Pooled, State, UpdateRule, UpdateStep

__all__ = ["SGD", "Adam", "HandDesignedRule", "RMSprop"]


@dataclass(frozen=True)
class HandDesignedRule(UpdateRule):
    """A rule with nothing learned: a learning rate and a few constants, nothing to read out."""

    learning_rate: float

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}")

    @property
    def readout_size(self) -> int:
        return 0

    def step_some(self, grad: Tensor, state: State, pooled: Pooled) -> UpdateStep:
        return self.step(grad, state)  # coordinates know nothing of each other


def _require_share(rule: HandDesignedRule, *names: str) -> None:
    for name in names:
        value = getattr(rule, name)
        require(0 <= value < 1, f"{name} must lie in [0, 1), got {value}")


@final
@dataclass(frozen=True)
class SGD(HandDesignedRule):
    """Gradient descent, with heavy-ball or Nesterov momentum (`torch.optim.SGD`)."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_share(self, "momentum")
        require(self.momentum > 0 or not self.nesterov, "nesterov needs a momentum above 0, got 0")

    def init(self, params: Tensor) -> State:
        return {"velocity": torch.zeros_like(params)} if self.momentum else {}

    def step(self, grad: Tensor, state: State) -> UpdateStep:
        if not self.momentum:
            return UpdateStep(-self.learning_rate * grad, grad.new_empty(len(grad), 0), {})
        velocity = self.momentum * state["velocity"] + grad
        direction = grad + self.momentum * velocity if self.nesterov else velocity
        return UpdateStep(
            -self.learning_rate * direction, grad.new_empty(len(grad), 0), {"velocity": velocity}
        )


@final
@dataclass(frozen=True)
class RMSprop(HandDesignedRule):
    """`torch.optim.RMSprop`, not centred."""

    decay: float = 0.99
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_share(self, "decay")
        require(self.epsilon > 0, f"epsilon must be above 0, got {self.epsilon}")

    def init(self, params: Tensor) -> State:
        return {"second_moment": torch.zeros_like(params)}

    def step(self, grad: Tensor, state: State) -> UpdateStep:
        second = self.decay * state["second_moment"] + (1 - self.decay) * grad.square()
        update = -self.learning_rate * grad / (second.sqrt() + self.epsilon)
        return UpdateStep(update, grad.new_empty(len(grad), 0), {"second_moment": second})


@final
@dataclass(frozen=True)
class Adam(HandDesignedRule):
    """`torch.optim.Adam` (Kingma & Ba 2015, algorithm 1)."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_share(self, "beta1", "beta2")
        require(self.epsilon > 0, f"epsilon must be above 0, got {self.epsilon}")

    def init(self, params: Tensor) -> State:
        zeros = torch.zeros_like(params)
        # The step is counted per problem: problems of one batch may have started apart.
        return {"first_moment": zeros, "second_moment": zeros, "count": zeros[:, :1]}

    def step(self, grad: Tensor, state: State) -> UpdateStep:
        count = state["count"] + 1
        first = self.beta1 * state["first_moment"] + (1 - self.beta1) * grad
        second = self.beta2 * state["second_moment"] + (1 - self.beta2) * grad.square()
        unbiased_first = first / (1 - self.beta1**count)
        unbiased_second = second / (1 - self.beta2**count)
        update = -self.learning_rate * unbiased_first / (unbiased_second.sqrt() + self.epsilon)
        state = {"first_moment": first, "second_moment": second, "count": count}
        return UpdateStep(update, grad.new_empty(len(grad), 0), state)


RULES = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam}
