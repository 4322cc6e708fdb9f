"""What a stop costs: two accounts, both always reported.

A rule that decides at theta_t has seen gamma_t, so it has paid for t + 1 gradients.

- `UPDATES`: the cost is the number of updates applied; a stop at t returns theta_t at cost t.
- `GRADIENTS`: the cost is the number of gradients evaluated. gamma_t is paid for, so its update
  is free and applied: a stop decided at t returns theta_{t+1} at cost t + 1. A decision made
  before the gradient at theta_{t+1} is requested uses just what is known after gamma_t, so it
  lands on the same account; it differs in being trained to look one step further.
"""

from collections.abc import Iterable
from enum import Enum
from typing import final

import torch
from torch import Tensor

from haltwise.halting.stopping import StopRule, Traces, decisions

__all__ = ["Account", "calibrate", "costs", "ends"]


@final
class Account(Enum):
    """What is counted."""

    UPDATES = "updates"
    GRADIENTS = "gradients"


def ends(decided: Tensor, account: Account, num_steps: int) -> Tensor:
    """Updates applied, and cost paid, by stops decided at steps [n] of at most `num_steps`."""
    return decided if account is Account.UPDATES else (decided + 1).clamp_max(num_steps)


def costs(excess: Tensor, price: float) -> Tensor:
    """J of ending at each step: excess + price * step, shape [n, T+1]."""
    return excess + price * torch.arange(excess.shape[1], dtype=excess.dtype, device=excess.device)


def calibrate(
    candidates: Iterable[StopRule], traces: Traces, table: Tensor, account: Account
) -> StopRule:
    """The candidate whose stops cost least on average, on traces set aside for tuning.

    Args:
        candidates: Settings to try, at least one.
        traces: The tuning problems.
        table: What ending at each step costs, shape [n, T+1]; see `costs`.
        account: What a decision at step t leads to.
    """
    best, best_cost = None, torch.inf
    for candidate in candidates:
        end = ends(decisions(candidate, traces), account, traces.num_steps)
        mean = table.gather(1, end.unsqueeze(1)).mean().item()
        if best is None or mean < best_cost:
            best, best_cost = candidate, mean
    assert best is not None
    return best
