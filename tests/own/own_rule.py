"""An update rule of one's own: steps of a fixed size against the sign of the gradient."""

from dataclasses import dataclass

from torch import Tensor

from haltwise.update_rules import State, UpdateRule, UpdateStep


@dataclass(frozen=True)
class SignDescent(UpdateRule):
    """g_t = -size * sign gamma_t."""

    size: float = 0.25
    """Size of every step."""

    @property
    def readout_size(self) -> int:
        return 0

    def init(self, params: Tensor) -> State:
        return {}

    def step(self, grad: Tensor, state: State) -> UpdateStep:
        return UpdateStep(-self.size * grad.sign(), grad.new_empty(len(grad), 0), {})

    def step_some(self, grad: Tensor, state: State, pooled: object) -> UpdateStep:
        return self.step(grad, state)
