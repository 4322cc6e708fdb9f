"""The thesis' open question answered: stop at the first local mode of the posterior."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from haltwise.halting.head import AFTER
from haltwise.halting.stopping.base import Seen, StopRule

__all__ = ["PosteriorMode"]


@final
@dataclass(frozen=True)
class PosteriorMode(StopRule):
    """Stop at the first t with delta_t <= 0.

    For a fixed trajectory the bound is largest at delta_t = (log p(x|t+1) - log p(x|t) - c)/tau:
    the rule stops when the forecast gain of a step no longer pays its price. Nothing is tuned.

    Args:
        output: `AFTER` to decide on delta_t with the gradient at theta_t in hand, `BEFORE` to
            decide on the forecast of delta_{t+1} before the gradient at theta_{t+1} is paid for.
    """

    output: int = AFTER

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("the next step is forecast to gain less than its price",)

    def step(self, seen: Seen, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return seen.signal("increments")[:, self.output] <= 0, memory
