"""Baselines that stops are compared with: simple stop rules, tuned as the learned ones are.

What may be returned at a stop is offered to all alike; but the learned iterate, which only a
halting model knows, is not theirs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from haltwise.evaluation.judge import Stops
from haltwise.models.halting_model import HaltingModel
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    BASELINES,
    RETURNABLE,
    CostUnit,
    DecisionTime,
    FixedBudget,
    Plateau,
    StopPolicy,
    StopRule,
    choose,
    costs,
    returnable,
    tune_baselines,
)

__all__ = ["choose_policies", "cross_fit", "last_improvement"]


def choose_policies(
    model: HaltingModel,
    tuning: Trajectory,
    unit: CostUnit,
    price: float,
    baselines: Mapping[str, type[StopRule]] = BASELINES,
) -> dict[str, StopPolicy]:
    """Every policy by name, tuned on items that nothing is judged on.

    `learned` is the model's own policy as it ships. `calibrated` has its setting, its time of
    decision and what it returns chosen as the baselines have theirs; `after_gradient` too, but it
    pays for a gradient before it decides. Both are missing where the method leaves nothing open.
    The tuning items have the model's outputs and stayed finite.
    """
    policies = {"learned": model.policy(unit)}
    table = costs(tuning.excess, price)
    natural = unit.decision_time
    after = model.method.candidates(tuning, table, DecisionTime.AFTER_GRADIENT)
    candidates = {"calibrated": list(after)}
    if natural is not DecisionTime.AFTER_GRADIENT:
        candidates["calibrated"] += model.method.candidates(tuning, table, natural)
        candidates["after_gradient"] = list(after)
    returns = returnable(unit, holds="hold_logits" in tuning.outputs)
    for name, rules in candidates.items():
        if rules:
            policies[name] = choose(rules, tuning, unit, price=price, returns=returns).policy
    tuned = tune_baselines(tuning, unit, price, baselines)
    return policies | {name: found.policy for name, found in tuned.items()}


def cross_fit(
    trajectory: Trajectory,
    unit: CostUnit,
    price: float,
    generator: torch.Generator,
    groups: Tensor | None = None,
) -> dict[str, Stops]:
    """The stops of a fixed budget and of the baselines on all items, none tuned where it is judged.

    Items are split into two halves at random, each rule is tuned on one and judged on the other,
    and the other way round. Each of the groups 0..G-1, int64 [n], is shared out evenly.
    """
    half = _halves(trajectory.num_items, generator, groups)
    parts: dict[str, list[Stops]] = {}
    rows = [(half == side).nonzero().squeeze(1) for side in (0, 1)]
    for tuned_on, judged_on in (rows, reversed(rows)):
        tuning, test = trajectory.select(tuned_on), trajectory.select(judged_on)
        rules: dict[str, type[StopRule]] = {"fixed_tuned": FixedBudget, **BASELINES}
        for name, found in tune_baselines(tuning, unit, price, rules).items():
            parts.setdefault(name, []).append(Stops.by(found.policy, test, unit))
    back = torch.cat((rows[1], rows[0])).argsort()
    return {
        name: Stops(
            torch.cat([stops.excess for stops in both])[back],
            torch.cat([stops.cost for stops in both])[back],
            "; on the other half ".join(stops.policy for stops in both),
        )
        for name, both in parts.items()
    }


def last_improvement(price: float, unit: CostUnit) -> StopPolicy:
    """The baseline that needs no tuning: stop where the last step gained no more than its price."""
    return StopPolicy(Plateau(price), RETURNABLE[unit][0])


def _halves(num: int, generator: torch.Generator, groups: Tensor | None) -> Tensor:
    """A random half, 0 or 1, for each of `num` items, int64 [num]."""
    order = torch.randperm(num, generator=generator, device="cpu")
    if groups is not None:
        order = order[groups[order].argsort(stable=True)]
    half = torch.empty_like(order)
    half[order] = torch.arange(num, device="cpu") % 2
    return half
