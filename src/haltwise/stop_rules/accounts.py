"""What a stop costs, and what it returns.

A rule that decides at theta_t has seen gamma_t, so it has paid for t + 1 gradients. Two accounts,
both always reported:

- `UPDATES`: the cost is the number of updates applied; a stop at t costs t.
- `GRADIENTS`: the cost is the number of gradients evaluated; a stop at t costs t + 1. A decision
  made before the gradient at theta_{t+1} is requested uses just what is known after gamma_t, so it
  lands on the same account; it is trained to look one step further.

What is returned is a `ReturnedIterate`. gamma_t is paid for, so where gradients are counted its update is
free; but where the loss oscillates theta_t is known to be good and theta_{t+1} is not.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist
from types import MappingProxyType
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise.stop_rules import StopRule, Traces, decide_all

__all__ = [
    "RETURNABLE",
    "CostUnit",
    "Calibration",
    "StopPolicy",
    "ReturnedIterate",
    "calibrate",
    "costs",
    "returned_steps",
    "steps_charged",
    "total_cost",
    "stops_at_once",
    "takes_update",
]


@final
class CostUnit(Enum):
    """What is counted."""

    UPDATES = "updates"
    GRADIENTS = "gradients"


@final
class ReturnedIterate(Enum):
    """What a stop decided at theta_t returns."""

    NEXT = "next"
    """theta_{t+1}: the update of the gradient paid for already is applied."""
    CURRENT = "current"
    """theta_t."""
    BEST = "best"
    """The theta_s, s <= t, of lowest observed loss, as early stopping by patience is practised."""
    LEARNED = "learned"
    """theta_t where the head holds (`hold_logits` > 0), else theta_{t+1}."""


RETURNABLE: Mapping[CostUnit, tuple[ReturnedIterate, ...]] = MappingProxyType(
    {
        CostUnit.UPDATES: (ReturnedIterate.CURRENT, ReturnedIterate.BEST),
        CostUnit.GRADIENTS: (ReturnedIterate.NEXT, ReturnedIterate.CURRENT, ReturnedIterate.BEST, ReturnedIterate.LEARNED),
    }
)
"""What may be returned at the cost of each account; the first is the default."""


@final
class StopPolicy(NamedTuple):
    """A stop rule and what is returned where it stops."""

    rule: StopRule
    recall: ReturnedIterate


@final
@dataclass(frozen=True)
class Calibration:
    """The policy that was chosen, and what it reached on the problems it was chosen on."""

    policy: StopPolicy
    account: CostUnit
    num_problems: int
    mean_excess: float
    mean_cost: float
    """In the account's unit."""
    excess_bound: float
    """Upper end of the one-sided 95 % interval of the mean excess, by the normal law."""


def takes_update(recall: ReturnedIterate, hold_logits: Tensor | None, like: Tensor) -> Tensor:
    """Whether a stop at theta_t returns theta_{t+1}, bool in the shape of `like`."""
    if recall is not ReturnedIterate.LEARNED:
        return torch.full_like(like, recall is ReturnedIterate.NEXT, dtype=torch.bool)
    require(hold_logits is not None, "ReturnedIterate.LEARNED needs hold_logits; record them or choose NEXT")
    assert hold_logits is not None
    return ~(hold_logits > 0)


def returned_steps(decided: Tensor, traces: Traces, recall: ReturnedIterate) -> Tensor:
    """The s of the theta_s returned by stops decided at steps [n], int64 [n].

    Where a rule never stops (T), theta_T is returned; its loss was never observed, so `BEST`
    chooses among theta_0..theta_{T-1}.
    """
    last = traces.num_steps - 1
    if recall is ReturnedIterate.BEST:
        steps = torch.arange(traces.num_steps, device=decided.device)
        unknown = (steps > decided.unsqueeze(1)) | traces.loss[:, :-1].isnan()
        return traces.loss[:, :-1].masked_fill(unknown, torch.inf).argmin(1)
    hold = traces.hold_logits
    if hold is not None:
        hold = hold.gather(1, decided.clamp_max(last).unsqueeze(1)).squeeze(1)
    return torch.where(decided > last, decided, decided + takes_update(recall, hold, decided))


def steps_charged(decided: Tensor, account: CostUnit, num_steps: int) -> Tensor:
    """What stops decided at steps [n] of at most `num_steps` cost, in the account's unit."""
    return decided if account is CostUnit.UPDATES else (decided + 1).clamp_max(num_steps)


def costs(excess: Tensor, price: float) -> Tensor:
    """J of ending at each step: excess + price * step, shape [n, T+1]."""
    return excess + price * torch.arange(excess.shape[1], dtype=excess.dtype, device=excess.device)


def total_cost(
    traces: Traces, decided: Tensor, account: CostUnit, recall: ReturnedIterate, *, price: float
) -> Tensor:
    """J of each problem: the excess of what is returned + price * what was paid, shape [n].

    See docs/theory.md, Eq. (cost).

    Args:
        traces: The problems.
        decided: Steps at which the rule stopped, int64 [n].
        account: What is counted.
        recall: What is returned.
        price: c, in units of the loss.

    Raises:
        InputError: What is to be returned costs more than the account counts.
    """
    return _excess(traces, decided, account, recall) + price * steps_charged(
        decided, account, traces.num_steps
    )


def _excess(traces: Traces, decided: Tensor, account: CostUnit, recall: ReturnedIterate) -> Tensor:
    """Of what is returned, shape [n]."""
    require(
        recall in RETURNABLE[account],
        f"a stop cannot return {recall.value!r} at the cost of its {account.value}; choose "
        + " or ".join(repr(choice.value) for choice in RETURNABLE[account]),
    )
    return traces.excess.gather(1, returned_steps(decided, traces, recall).unsqueeze(1)).squeeze(1)


def stops_at_once(traces: Traces, account: CostUnit, price: float) -> bool:
    """Whether in hindsight every problem is best stopped at step 0, whatever is returned then."""
    first = torch.full_like(traces.excess[:, 0], torch.inf)
    later = first
    for step in range(traces.num_steps + 1):
        decided = torch.full_like(traces.loss[:, 0], step, dtype=torch.int64)
        for recall in set(RETURNABLE[account]) - {ReturnedIterate.LEARNED}:  # it is one of the others
            j = total_cost(traces, decided, account, recall, price=price)
            if step == 0:
                first = torch.minimum(first, j)
            else:
                later = torch.minimum(later, j)
    return bool((first <= later).all())


def calibrate(
    candidates: Iterable[StopRule],
    traces: Traces,
    account: CostUnit,
    *,
    price: float | None = None,
    budget: float | None = None,
    risk: float | None = None,
    recalls: tuple[ReturnedIterate, ...] | None = None,
) -> Calibration:
    """The candidate whose stops serve best on average, on traces set aside for tuning.

    `risk` asks the mean excess to lie below it with 95 % confidence, by a one-sided normal bound
    for each candidate. That is the idea of Learn then Test (Angelopoulos et al. 2021, arXiv
    2110.01052) without its guarantee: it supposes many problems, a mean that is nearly normal,
    and does not pay for having looked at many candidates.

    Args:
        candidates: Settings to try, at least one.
        traces: The tuning problems.
        account: What is counted.
        price: c, in units of the loss: least mean excess + c * cost.
        budget: Least mean excess at a mean cost of at most this.
        risk: Least mean cost at a mean excess of at most this.
        recalls: What to try to return; the account's default alone if None.

    Raises:
        InputError: Not just one of price, budget and risk is given, or no candidate is within it.
    """
    given = {"price": price, "budget": budget, "risk": risk}
    named = [f"{name}={value:g}" for name, value in given.items() if value is not None]
    require(
        len(named) == 1,
        f"give exactly one of price, budget and risk, got {', '.join(named) or 'none'}",
    )
    measured = [
        _measure(StopPolicy(candidate, recall), decided, traces, account)
        for candidate, decided in decide_all(candidates, traces)
        for recall in recalls or RETURNABLE[account][:1]
    ]
    if price is not None:
        c = price
        return min(measured, key=lambda m: _least(m.mean_excess + c * m.mean_cost))
    if budget is not None:
        within = [m for m in measured if m.mean_cost <= budget]
        if not within:
            raise InputError(
                f"no candidate costs at most {budget:g} {account.value} on average; the least "
                f"attainable is {min(m.mean_cost for m in measured):.4g}"
            )
        return min(within, key=lambda m: (_least(m.mean_excess), m.mean_cost))
    assert risk is not None
    within = [m for m in measured if m.excess_bound <= risk]
    if not within:
        raise InputError(
            f"no candidate keeps the mean excess at or below {risk:g} with 95 % confidence; the "
            f"lowest bound attainable is {min(_least(m.excess_bound) for m in measured):.4g}"
        )
    return min(within, key=lambda m: (m.mean_cost, m.mean_excess))


def _measure(policy: StopPolicy, decided: Tensor, traces: Traces, account: CostUnit) -> Calibration:
    excess = _excess(traces, decided, account, policy.recall).double()
    num = len(excess)
    mean, error = excess.mean().item(), excess.std(correction=0).item() / max(num - 1, 1) ** 0.5
    return Calibration(
        policy,
        account,
        num,
        mean_excess=mean,
        mean_cost=steps_charged(decided, account, traces.num_steps).double().mean().item(),
        excess_bound=mean + NormalDist().inv_cdf(0.95) * error,
    )


def _least(value: float) -> float:
    """The value to minimise: what is not a number comes last."""
    return math.inf if math.isnan(value) else value
