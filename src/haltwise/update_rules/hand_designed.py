"""What hand-designed rules share."""

from dataclasses import dataclass

from torch import Tensor

from haltwise._core.errors import require
from haltwise.update_rules.base import PooledGradient, State, UpdateRule, UpdateStep
from haltwise.update_rules.capabilities import SupportsChunks

__all__ = ["HandDesignedRule", "require_fraction"]


@dataclass(frozen=True)
class HandDesignedRule(UpdateRule, SupportsChunks):
    """A rule with nothing learned that moves every coordinate by itself.

    Args:
        learning_rate: Step size, above 0.
    """

    learning_rate: float

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}")

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self.update(grad, state)


def require_fraction(name: str, value: float) -> None:
    """Refuse a setting outside of [0, 1).

    Raises:
        InputError: It is outside.
    """
    require(0 <= value < 1, f"{name} must lie in [0, 1), got {value}")
