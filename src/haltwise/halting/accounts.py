"""What a stop costs: two accounts, both always reported.

A rule that decides at theta_t has seen gamma_t, so it has paid for t + 1 gradients.

- `UPDATES`: the cost is the number of updates applied; a stop at t returns theta_t at cost t.
- `GRADIENTS`: the cost is the number of gradients evaluated. gamma_t is paid for, so its update
  is free: a stop decided at t costs t + 1 and returns theta_{t+1}, or theta_t if the rule *holds*.
  Holding pays where the loss oscillates: theta_t is known to be good, theta_{t+1} is not. A
  decision made before the gradient at theta_{t+1} is requested uses just what is known after
  gamma_t, so it lands on the same account; it is trained to look one step further.
"""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise.halting.stopping import StopRule, Traces, decisions

__all__ = ["Account", "Policy", "calibrate", "costs", "ends", "paid", "settle"]


@final
class Account(Enum):
    """What is counted."""

    UPDATES = "updates"
    GRADIENTS = "gradients"


@final
class Policy(NamedTuple):
    """A stop rule, and whether it holds: returns theta_t without the last, free update."""

    rule: StopRule
    hold: bool = False


def ends(decided: Tensor, account: Account, num_steps: int, *, hold: bool = False) -> Tensor:
    """Updates applied by stops decided at steps [n] of at most `num_steps`, int64 [n]."""
    keeps = account is Account.UPDATES or hold
    return decided if keeps else (decided + 1).clamp_max(num_steps)


def paid(decided: Tensor, account: Account, num_steps: int) -> Tensor:
    """What stops decided at steps [n] of at most `num_steps` cost, in the account's unit."""
    return decided if account is Account.UPDATES else (decided + 1).clamp_max(num_steps)


def costs(excess: Tensor, price: float) -> Tensor:
    """J of ending at each step: excess + price * step, shape [n, T+1]."""
    return excess + price * torch.arange(excess.shape[1], dtype=excess.dtype, device=excess.device)


def settle(
    table: Tensor, decided: Tensor, account: Account, *, price: float, hold: bool = False
) -> Tensor:
    """J of each problem, shape [n].

    Args:
        table: What ending at each step costs, shape [n, T+1]; see `costs`.
        decided: Steps at which the rule stopped, int64 [n].
        account: What is counted.
        price: What a step costs in `table`.
        hold: Whether the last, free update is left out.
    """
    num_steps = table.shape[1] - 1
    end = ends(decided, account, num_steps, hold=hold)
    unused = paid(decided, account, num_steps) - end  # gradients paid for and not applied
    return table.gather(1, end.unsqueeze(1)).squeeze(1) + price * unused


def calibrate(
    candidates: Iterable[StopRule],
    traces: Traces,
    table: Tensor,
    account: Account,
    *,
    price: float,
    holds: tuple[bool, ...] = (False,),
) -> Policy:
    """The candidate whose stops cost least on average, on traces set aside for tuning.

    Args:
        candidates: Settings to try, at least one.
        traces: The tuning problems.
        table: What ending at each step costs, shape [n, T+1]; see `costs`.
        account: What a decision at step t leads to.
        price: What a step costs in `table`.
        holds: Whether to try holding, not holding, or both.
    """
    best, best_cost = None, torch.inf
    for candidate in candidates:
        decided = decisions(candidate, traces)
        for hold in holds:
            mean = settle(table, decided, account, price=price, hold=hold).mean().item()
            if best is None or mean < best_cost:
                best, best_cost = Policy(candidate, hold), mean
    assert best is not None
    return best
