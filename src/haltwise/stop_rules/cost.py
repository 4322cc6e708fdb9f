"""The cost of stops, and the iterates that they return."""

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.policy import RETURNABLE, CostUnit, ReturnedIterate

__all__ = [
    "costs",
    "returned_excess",
    "returned_steps",
    "steps_charged",
    "stops_at_once",
    "takes_update",
    "total_cost",
]


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
    """The s of the theta_s returned by stops decided at steps [n], int64 [n].

    Where a rule never stops (T), theta_T is returned; its loss was never observed, so `BEST`
    chooses among theta_0..theta_{T-1}.
    """
    last = trajectory.num_steps - 1
    if returns is ReturnedIterate.BEST:
        steps = torch.arange(trajectory.num_steps, device=decided.device)
        unknown = (steps > decided.unsqueeze(1)) | trajectory.loss[:, :-1].isnan()
        return trajectory.loss[:, :-1].masked_fill(unknown, torch.inf).argmin(1)
    hold = trajectory.outputs.get("hold_logits")
    if hold is not None:
        hold = hold.gather(1, decided.clamp_max(last).unsqueeze(1)).squeeze(1)
    return torch.where(decided > last, decided, decided + takes_update(returns, hold, decided))


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
    """J of each item: the excess of what is returned + price * what is charged, shape [n].

    See docs/theory.md, Eq. (cost).

    Args:
        trajectory: The items.
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


def returned_excess(
    trajectory: Trajectory, decided: Tensor, unit: CostUnit, returns: ReturnedIterate
) -> Tensor:
    """The excess of what is returned, shape [n].

    Raises:
        InputError: What is to be returned costs more than the unit counts.
    """
    require(
        returns in RETURNABLE[unit],
        f"a stop cannot return {returns.value!r} at the cost of its {unit.value}; choose "
        + " or ".join(repr(choice.value) for choice in RETURNABLE[unit]),
    )
    steps = returned_steps(decided, trajectory, returns)
    return trajectory.excess.gather(1, steps.unsqueeze(1)).squeeze(1)


def stops_at_once(trajectory: Trajectory, unit: CostUnit, price: float) -> bool:
    """Whether in hindsight every item is best stopped at step 0, whatever is returned then."""
    first = torch.full_like(trajectory.excess[:, 0], torch.inf)
    later = first
    for step in range(trajectory.num_steps + 1):
        decided = torch.full_like(trajectory.loss[:, 0], step, dtype=torch.int64)
        # The learned iterate is one of the others.
        for returns in set(RETURNABLE[unit]) - {ReturnedIterate.LEARNED}:
            j = total_cost(trajectory, decided, unit, returns, price=price)
            if step == 0:
                first = torch.minimum(first, j)
            else:
                later = torch.minimum(later, j)
    return bool((first <= later).all())
