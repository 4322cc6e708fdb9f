"""What hand-designed rules share."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from haltwise._core.errors import require
from haltwise.update_rules.base import PooledGradient, State, UpdateRule, UpdateStep
from haltwise.update_rules.capabilities import SupportsChunks

__all__ = ["HandDesignedRule"]


@dataclass(frozen=True)
class HandDesignedRule(UpdateRule, SupportsChunks):
    """A rule with nothing learned that moves every coordinate by itself.

    Args:
        learning_rate: Step size, above 0.
    """

    positive: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Names of settings that must be above 0."""
    fractions: ClassVar[tuple[str, ...]] = ()
    """Names of settings that must lie in [0, 1)."""

    learning_rate: float

    def __post_init__(self) -> None:
        for name in self.positive:
            value = getattr(self, name)
            require(value > 0, f"{name} must be above 0, got {value}")
        for name in self.fractions:
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must lie in [0, 1), got {value}")

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self.update(grad, state)
