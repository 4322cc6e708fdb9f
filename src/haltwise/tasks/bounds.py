"""Bounds of parameters, kept by optimizing another coordinate that has none."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import real_number

__all__ = ["OpenInterval", "interval", "positive"]

_MIDDLE = 1.0  # |u| up to which x is reckoned from the middle of two bounds


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
        # From the nearest of bounds and middle, or x would have the rounding of the others.
        near_low, near_high = (2 * self._half * torch.sigmoid(sign * free) for sign in (1, -1))
        near_bound = torch.where(free <= 0, self.low + near_low, self.high - near_high)
        near_middle = self._middle + self._half * torch.tanh(free / 2)
        return torch.where(free.abs() < _MIDDLE, near_middle, near_bound)

    def free(self, own: Tensor) -> Tensor:
        """Compute u from x."""
        if math.isinf(self.high):
            return (own - self.low).log()
        if math.isinf(self.low):
            return -(self.high - own).log()
        near_bound = (own - self.low).log() - (self.high - own).log()
        share = (own - self._middle) / self._half
        return torch.where(share.abs() < math.tanh(_MIDDLE / 2), 2 * share.atanh(), near_bound)

    def slope(self, free: Tensor) -> Tensor:
        """Compute dx/du."""
        if math.isinf(self.high):
            return free.exp()
        if math.isinf(self.low):
            return (-free).exp()
        return 2 * self._half * torch.sigmoid(free) * torch.sigmoid(-free)

    def bend(self, free: Tensor) -> Tensor:
        """Compute d^2x/du^2."""
        slope = self.slope(free)
        if math.isinf(self.high):
            return slope
        return -slope if math.isinf(self.low) else -slope * torch.tanh(free / 2)

    @property
    def _half(self) -> float:
        """Half of the distance between two bounds."""
        return 0.5 * self.high - 0.5 * self.low

    @property
    def _middle(self) -> float:
        return 0.5 * self.high + 0.5 * self.low


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
        InputError: `low` is not below `high`, both are infinite, one is NaN, or the distance
            between them is no number of float64.

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
    require(
        math.isinf(ends.low) or math.isinf(ends.high) or math.isfinite(ends.high - ends.low),
        f"an interval from {ends.low:g} to {ends.high:g} is too wide to be computed in; leave a "
        "parameter without bounds out",
    )
    return ends
