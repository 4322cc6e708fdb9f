"""Opponents that see losses alone, tuned on one half of the problems and judged on the other."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from haltwise.stop_rules import Patience, Plateau, StopRule, Traces, decide_all
from haltwise.stop_rules.accounts import RETURNABLE, CostUnit, calibrate, costs, total_cost

__all__ = ["OPPONENTS", "cross_fitted", "halves"]

_TUNED: Mapping[str, type[StopRule]] = MappingProxyType({"plateau": Plateau, "patience": Patience})
OPPONENTS = ("fixed", *_TUNED)
"""Their names, in the order of the columns of `cross_fitted`."""
_FIRST_LOOK, _SHORTLIST = 1000, 20


def halves(num: int, clusters: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random half, 0 or 1, for each of `num` problems, int64 [num].

    Args:
        num: n.
        clusters: The seed of each problem, int64 [n]: every seed's problems are shared out evenly.
        generator: CPU generator.
    """
    order = torch.randperm(num, generator=generator)
    if clusters is not None:
        order = order[clusters[order].argsort(stable=True)]
    half = torch.empty(num, dtype=torch.int64)
    half[order] = torch.arange(num) % 2
    return half


def cross_fitted(
    seen: Tensor, losses: Tensor, half: Tensor, account: CostUnit, price: float
) -> tuple[Tensor, list[dict[str, Any]]]:
    """J of every opponent on every problem, each tuned on the half that the problem is not in.

    Args:
        seen: What the opponents observe, shape [n, T+1].
        losses: By which they are tuned and judged, shape [n, T+1].
        half: From `halves`, [n].
        account: What is counted.
        price: c, in units of the loss.

    Returns:
        J, shape [n, len(OPPONENTS)], and the settings chosen for judging each half.
    """

    def traces(rows: Tensor) -> Traces:
        part = seen[rows].t().contiguous().t()  # rules read it step by step
        return Traces(part, losses[rows])

    table = costs(losses, price)
    result, settings = table.new_empty(len(table), len(OPPONENTS)), []
    for judged in (0, 1):
        tuning, test = (half != judged).nonzero().squeeze(1), (half == judged).nonzero().squeeze(1)
        tune_on, judge_on = traces(tuning), traces(test)
        budget = int(table[tuning].mean(0).argmin())
        result[test, 0] = table[test, budget]
        chosen: dict[str, Any] = {"fixed": {"budget": budget}}
        for place, (name, kind) in enumerate(_TUNED.items(), start=1):
            candidates = kind.candidates(tune_on, table[tuning])
            costs_at_first = _settled(candidates, traces(tuning[:_FIRST_LOOK]), account, price)
            # The best on a part of the tuning problems: the rest would only take time.
            best = costs_at_first.mean(1).argsort(stable=True)[:_SHORTLIST].tolist()
            shortlist = [candidates[index] for index in best]
            rule = calibrate(shortlist, tune_on, account, price=price).policy.rule
            result[test, place] = _settled([rule], judge_on, account, price)[0]
            chosen[name] = dict(vars(rule))
        settings.append(chosen)
    return result, settings


def _settled(rules: Sequence[StopRule], traces: Traces, account: CostUnit, price: float) -> Tensor:
    """J of each rule and problem, the account's default being returned, [len(rules), n]."""
    return torch.stack(
        [
            total_cost(traces, decided, account, RETURNABLE[account][0], price=price)
            for _, decided in decide_all(rules, traces)
        ]
    )
