"""An update rule of one's own: steps of a fixed size against the sign of the gradient."""

from dataclasses import dataclass

from torch import Tensor

from haltwise.update_rules import (
    PooledGradient,
    State,
    SupportsChunks,
    UpdateRule,
    UpdateStep,
)


@dataclass(frozen=True)
class SignDescent(UpdateRule, SupportsChunks):
    """g_t = -size * sign gamma_t."""

    size: float = 0.25
    """Size of every step."""

    def init(self, params: Tensor) -> State:
        return {}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return UpdateStep.without_readout(-self.size * grad.sign(), {})

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self.update(grad, state)
