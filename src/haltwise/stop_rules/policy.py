"""Stop policies: a stop rule and the iterate that it returns, and what its stops cost.

A rule that decides at theta_t with its gradient in hand has paid for t + 1 gradients. Two units of
cost, both always reported:

- `CostUnit.UPDATES`: the number of updates applied; a stop at t costs t.
- `CostUnit.GRADIENTS`: the number of gradients evaluated; a stop at t costs t + 1. A decision made
  before the gradient at theta_{t+1} is requested uses just what is known after gamma_t, so it is
  charged alike; it is trained to look one step further.

What is returned is a `ReturnedIterate`. gamma_t is paid for, so where gradients are counted its
update is free; but where the loss oscillates theta_t is known to be good and theta_{t+1} is not.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import DecisionTime, StopRule

__all__ = [
    "RETURNABLE",
    "CostUnit",
    "ReturnedIterate",
    "StopPolicy",
    "costs",
    "returned_excess",
    "returned_steps",
    "steps_charged",
    "takes_update",
    "total_cost",
]


@final
class CostUnit(Enum):
    """The unit in which cost is counted."""

    UPDATES = "updates"
    GRADIENTS = "gradients"

    @property
    def decision_time(self) -> DecisionTime:
        """The natural time of decision: a gradient that is paid for is asked for only if needed."""
        after = self is CostUnit.UPDATES
        return DecisionTime.AFTER_GRADIENT if after else DecisionTime.BEFORE_GRADIENT


@final
class ReturnedIterate(Enum):
    """The iterate that a stop decided at theta_t returns."""

    NEXT = "next"
    """theta_{t+1}: the update of the gradient paid for already is applied."""
    CURRENT = "current"
    """theta_t."""
    BEST = "best"
    """The theta_s, s <= t, of lowest observed loss, as early stopping by patience is practised."""
    LEARNED = "learned"
    """theta_t where the halting model holds (`hold_logits` > 0), else theta_{t+1}."""


RETURNABLE: Mapping[CostUnit, tuple[ReturnedIterate, ...]] = MappingProxyType(
    {
        CostUnit.UPDATES: (ReturnedIterate.CURRENT, ReturnedIterate.BEST),
        CostUnit.GRADIENTS: (
            ReturnedIterate.NEXT,
            ReturnedIterate.CURRENT,
            ReturnedIterate.BEST,
            ReturnedIterate.LEARNED,
        ),
    }
)
"""What may be returned at the cost of each unit; the first is the default."""


@final
class StopPolicy(NamedTuple):
    """A stop rule and what is returned where it stops."""

    rule: StopRule
    returns: ReturnedIterate


def takes_update(returns: ReturnedIterate, hold_logits: Tensor | None, like: Tensor) -> Tensor:
    """Whether a stop at theta_t returns theta_{t+1}, bool in the shape of `like`."""
    if returns is not ReturnedIterate.LEARNED:
        return torch.full_like(like, returns is ReturnedIterate.NEXT, dtype=torch.bool)
    require(
        hold_logits is not None,
        "returning the learned iterate needs hold_logits; record them or choose "
        "ReturnedIterate.NEXT",
    )
    assert hold_logits is not None
    return ~(hold_logits > 0)


def returned_steps(decided: Tensor, trajectory: Trajectory, returns: ReturnedIterate) -> Tensor:
    """The s of the theta_s returned by stops decided at steps [n] or [n, stops], int64 likewise.

    Where a rule never stops (T), theta_T is returned; its loss was never observed, so `BEST`
    chooses among theta_0..theta_{T-1}.
    """
    last = trajectory.num_steps - 1

    def at_stops(known: Tensor) -> Tensor:
        stops = decided.clamp_max(last)
        return known.gather(1, stops if stops.dim() > 1 else stops.unsqueeze(1)).view_as(stops)

    if returns is ReturnedIterate.BEST:
        return at_stops(_steps_of_best(trajectory.loss[:, :-1]))
    hold = trajectory.outputs.get("hold_logits")
    if hold is not None:
        hold = at_stops(hold)
    return torch.where(decided > last, decided, decided + takes_update(returns, hold, decided))


def _steps_of_best(loss: Tensor) -> Tensor:
    """The first s <= t of least loss, where NaN is none, int64 in the shape [n, T] of `loss`."""
    loss = loss.nan_to_num(torch.inf, torch.inf, -torch.inf)
    steps = torch.arange(loss.shape[1], device=loss.device)
    before = loss.cummin(1).values.roll(1, 1)
    return torch.where((steps > 0) & (loss < before), steps, 0).cummax(1).values


def returned_excess(
    trajectory: Trajectory, decided: Tensor, unit: CostUnit, returns: ReturnedIterate
) -> Tensor:
    """The excess of what stops decided at steps [n] or [n, stops] return, shaped likewise.

    Raises:
        InputError: What is to be returned costs more than the unit counts.
    """
    require(
        returns in RETURNABLE[unit],
        f"a stop cannot return {returns.value!r} at the cost of its {unit.value}; choose "
        + " or ".join(repr(choice.value) for choice in RETURNABLE[unit]),
    )
    steps = returned_steps(decided, trajectory, returns)
    return trajectory.excess.gather(1, steps.view(len(steps), -1)).view_as(steps)


def steps_charged(decided: Tensor, unit: CostUnit, num_steps: int) -> Tensor:
    """The cost of stops decided at steps [n] of at most `num_steps`, in the unit of cost."""
    return decided if unit is CostUnit.UPDATES else (decided + 1).clamp_max(num_steps)


def costs(excess: Tensor, price: float) -> Tensor:
    """J of ending at each step: excess + price * step, shape [n, T+1]."""
    return excess + price * torch.arange(excess.shape[1], dtype=excess.dtype, device=excess.device)


def total_cost(
    trajectory: Trajectory,
    decided: Tensor,
    unit: CostUnit,
    returns: ReturnedIterate,
    *,
    price: float,
) -> Tensor:
    """J of each item: the excess returned + price * what is charged, docs/theory.md, Eq. (cost).

    Args:
        trajectory: n items.
        decided: Steps at which the rule stopped, int64 [n].
        unit: What is counted.
        returns: What is returned.
        price: c, in units of the loss.

    Raises:
        InputError: What is to be returned costs more than the unit counts.
    """
    excess = returned_excess(trajectory, decided, unit, returns)
    # In the precision of the losses: a number times int64 is float32.
    charged = steps_charged(decided, unit, trajectory.num_steps).to(excess.dtype)
    return excess + price * charged
