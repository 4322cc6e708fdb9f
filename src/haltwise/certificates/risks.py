"""Kinds of risk: what a stop may cost a problem at most, on average."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import real_number, shown

__all__ = [
    "RISKS",
    "Cost",
    "ExcessLoss",
    "FunctionOfStop",
    "GainForgone",
    "LossAbove",
    "Risk",
    "StopOutcomes",
    "SuccessGivenUp",
]


class StopOutcomes(NamedTuple):
    """Where n problems stop under C candidates, and what they might have reached.

    Attributes:
        excess: Excess of what is returned, float64 [n, C].
        cost: What is charged, float64 [n, C].
        lowest: Least excess at any step, float64 [n].
        last: Excess of what going on to the horizon's end returns, float64 [n].
    """

    excess: Tensor
    cost: Tensor
    lowest: Tensor
    last: Tensor


class Risk(ABC):
    """The loss of a problem where it stops; the risk is its mean."""

    is_indicator: ClassVar[bool] = False
    """Whether the loss is 0 or 1 by definition."""
    rises_with_cost: ClassVar[bool] = False
    """Whether the safest stop is the earliest; then going on is what a bolder one buys."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The risk as a noun phrase."""

    @abstractmethod
    def losses(self, stops: StopOutcomes) -> Tensor:
        """Loss of each problem under each candidate, [n, C]."""

    def subjects(self, stops: StopOutcomes) -> Tensor:
        """The problems that the risk is about, bool [n]; all of them."""
        return torch.ones_like(stops.lowest, dtype=torch.bool)

    def natural_bound(self, num_steps: int) -> float | None:
        """The largest loss there can be; None if whoever asks must say."""
        del num_steps
        return 1.0 if self.is_indicator else None


@final
@dataclass(frozen=True)
class ExcessLoss(Risk):
    """Mean excess loss of what a stop returns."""

    @property
    def words(self) -> str:
        return "mean excess loss at the stop"

    def losses(self, stops: StopOutcomes) -> Tensor:
        return stops.excess


@final
@dataclass(frozen=True)
class GainForgone(Risk):
    """Mean loss of what a stop returns above that of going on to the end, 0 where it is below.

    For losses whose least is not known: a floor that no stop can go below cancels.
    """

    @property
    def words(self) -> str:
        return "mean gain forgone by not going on to the end"

    def losses(self, stops: StopOutcomes) -> Tensor:
        return (stops.excess - stops.last.unsqueeze(1)).clamp_min(0)


@final
@dataclass(frozen=True)
class SuccessGivenUp(Risk):
    """Share of the problems which would reach the target that are stopped short of it."""

    target: float
    """Excess loss at or below which a problem is a success."""

    is_indicator = True

    def __post_init__(self) -> None:
        _require_target(self.target)

    @property
    def words(self) -> str:
        return f"share of successes (an excess loss of at most {self.target:g}) given up"

    def losses(self, stops: StopOutcomes) -> Tensor:
        return ~(stops.excess <= self.target)  # true for NaN

    def subjects(self, stops: StopOutcomes) -> Tensor:
        return stops.lowest <= self.target


@final
@dataclass(frozen=True)
class LossAbove(Risk):
    """Share of problems that are stopped at an excess loss above a limit."""

    target: float
    """The excess loss that a problem should not exceed."""

    is_indicator = True

    def __post_init__(self) -> None:
        _require_target(self.target)

    @property
    def words(self) -> str:
        return f"share of problems stopped at an excess loss above {self.target:g}"

    def losses(self, stops: StopOutcomes) -> Tensor:
        return ~(stops.excess <= self.target)  # true for NaN


@final
@dataclass(frozen=True)
class Cost(Risk):
    """Mean cost of a problem; bolder is who goes on."""

    rises_with_cost = True

    @property
    def words(self) -> str:
        return "mean cost"

    def losses(self, stops: StopOutcomes) -> Tensor:
        return stops.cost

    def natural_bound(self, num_steps: int) -> float | None:
        return float(max(num_steps, 1))


@final
@dataclass(frozen=True)
class FunctionOfStop(Risk):
    """Mean of a function of excess loss and cost, bounded by 1 unless a bound is given."""

    function: Callable[[Tensor, Tensor], Tensor]
    """From excess and cost, float64 [n, C] each, to losses [n, C]."""

    @property
    def words(self) -> str:
        return f"mean of {getattr(self.function, '__name__', 'a function')}"

    def losses(self, stops: StopOutcomes) -> Tensor:
        found = self.function(stops.excess, stops.cost)
        require(
            isinstance(found, Tensor) and found.shape == stops.excess.shape,
            f"{self.words} must be a tensor of shape {list(stops.excess.shape)}, a loss for each "
            f"problem and threshold, got {shown(found)}",
        )
        return found

    def natural_bound(self, num_steps: int) -> float | None:
        del num_steps
        return 1.0


def _require_target(target: float) -> None:
    require(
        math.isfinite(real_number("target", target)),
        f"target must be finite, an excess loss, got {target}",
    )


RISKS: Mapping[str, type[Risk]] = MappingProxyType(
    {
        "excess": ExcessLoss,
        "forgone": GainForgone,
        "given-up": SuccessGivenUp,
        "above": LossAbove,
        "cost": Cost,
    }
)
"""Kinds that a command can name."""
