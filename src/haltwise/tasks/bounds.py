"""Bounds of parameters, kept by optimizing another coordinate that has none."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import real_number

__all__ = ["OpenInterval", "interval", "positive"]


@final
@dataclass(frozen=True)
class OpenInterval:
    """The open interval (low, high) of a parameter x, and a free coordinate u on the whole line.

    x = low + exp(u) where there is no upper bound, x = high - exp(-u) where there is no lower, and
    x = low + (high - low) sigmoid(u) between two. Each increases in u.
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"({self.low:g}, {self.high:g})"

    def holds(self, own: Tensor) -> Tensor:
        """Where x has a finite u: strictly inside, and told apart from the bounds; bool."""
        return (own > self.low) & (own < self.high) & self.free(own).isfinite()

    def own(self, free: Tensor) -> Tensor:
        """Compute x from u."""
        if math.isinf(self.high):
            return free.exp() + self.low
        if math.isinf(self.low):
            return self.high - (-free).exp()
        width = self.high - self.low
        # From the nearer bound, or else x would be rounded to the upper one too early.
        near_low, near_high = (width * torch.sigmoid(sign * free) for sign in (1, -1))
        return torch.where(free <= 0, self.low + near_low, self.high - near_high)

    def free(self, own: Tensor) -> Tensor:
        """Compute u from x."""
        if math.isinf(self.high):
            return (own - self.low).log()
        if math.isinf(self.low):
            return -(self.high - own).log()
        return (own - self.low).log() - (self.high - own).log()

    def slope(self, free: Tensor) -> Tensor:
        """Compute dx/du."""
        if math.isinf(self.high):
            return free.exp()
        if math.isinf(self.low):
            return (-free).exp()
        return (self.high - self.low) * torch.sigmoid(free) * torch.sigmoid(-free)

    def bend(self, free: Tensor) -> Tensor:
        """Compute d^2x/du^2."""
        slope = self.slope(free)
        if math.isinf(self.high):
            return slope
        return -slope if math.isinf(self.low) else -slope * torch.tanh(free / 2)


def positive() -> OpenInterval:
    """Bound a parameter to numbers above 0, by optimizing its logarithm.

    Examples:
        >>> import haltwise, torch
        >>> def loss(params, count):  # Poisson
        ...     return params["rate"] - count * params["rate"].log()
        >>> problem = haltwise.FunctionBatch(
        ...     {"rate": torch.ones(3)}, loss, {"count": torch.tensor([1.0, 4.0, 9.0])},
        ...     bounds={"rate": haltwise.positive()},
        ... )
        >>> haltwise.solve(problem, method="newton").params["rate"].round(decimals=2)
        tensor([1., 4., 9.])
    """
    return OpenInterval(0.0, math.inf)


def interval(low: float, high: float) -> OpenInterval:
    """Bound a parameter to numbers strictly between two; one of them may be infinite.

    Raises:
        InputError: `low` is not below `high`, both are infinite, or one is NaN.

    Examples:
        >>> interval(0, 1).own(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """
    ends = OpenInterval(real_number("low", low), real_number("high", high))
    require(
        ends.low < ends.high and not (math.isinf(ends.low) and math.isinf(ends.high)),
        "an interval needs low below high, and one of them finite, got "
        f"{ends.low:g} and {ends.high:g}; leave a parameter without bounds out",
    )
    return ends
