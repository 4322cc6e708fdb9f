"""Risk tables of stop rules on recorded trajectories."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise._core.settings import real_number
from haltwise.certificates.risks import Risk, StopOutcomes
from haltwise.certificates.table import RiskTable, label_codes
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    CostUnit,
    ReturnedIterate,
    StopRule,
    decide_all,
    returned_excess,
    steps_charged,
)

__all__ = ["from_the_safest", "largest_loss", "set_aside", "tabulate"]

_SHARE = 10  # one problem in so many finds the thresholds


def tabulate(
    candidates: Sequence[StopRule],
    trajectory: Trajectory,
    risk: Risk,
    *,
    unit: CostUnit,
    returns: ReturnedIterate,
    groups: Sequence[Any] | Tensor | None = None,
    bound: float | None = None,
    clip: bool = False,
) -> RiskTable:
    """What every candidate, from the safest to the boldest, would have lost and saved.

    Savings are what is not charged of the whole trajectory; where the cost is at risk, the excess
    loss that going on saves against the first candidate.

    Args:
        candidates: C settings that do not depend on these problems.
        trajectory: n problems.
        risk: What is lost at a stop.
        unit: What is charged.
        returns: What a stop returns.
        groups: See `RiskTable.of`, as are `bound` and `clip`.
        bound: The largest loss of a problem; that of the kind of risk if None.
        clip: Whether larger losses count as the bound.

    Raises:
        InputError: See `RiskTable.of`; or the kind of risk has no bound of its own and none is
            given.

    Examples:
        >>> from haltwise.certificates import ExcessLoss
        >>> from haltwise.stop_rules import FixedBudget
        >>> losses = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.2, 0.1]])
        >>> table = tabulate(
        ...     [FixedBudget(2), FixedBudget(1)], Trajectory(losses, losses), ExcessLoss(),
        ...     unit=CostUnit.UPDATES, returns=ReturnedIterate.CURRENT, bound=1.0,
        ... )
        >>> table.losses.mean(0).tolist(), table.savings.mean(0).tolist()
        ([0.05000000074505806, 0.3500000014901161], [0.0, 1.0])
    """
    require(len(candidates) > 0, "there is no candidate to certify; give stop rules to try")
    stops = _stops(candidates, trajectory, unit, returns)
    largest = largest_loss(risk, trajectory.num_steps, bound)
    if risk.rises_with_cost:
        savings = (stops.excess[:, :1] - stops.excess).nan_to_num(0, 0, 0)
    else:
        savings = trajectory.num_steps - stops.cost
    return RiskTable.of(
        risk.losses(stops),
        savings,
        groups=groups,
        subjects=risk.subjects(stops),
        risk=risk.words,
        bound=largest,
        clip=clip,
        is_indicator=risk.is_indicator,
    )


def largest_loss(risk: Risk, num_steps: int, bound: float | None) -> float:
    """The largest loss that a problem can have: the bound, or that of the kind of risk if None.

    Raises:
        InputError: Neither is known, or the bound is none.
    """
    largest = risk.natural_bound(num_steps) if bound is None else real_number("bound", bound)
    if largest is None:
        raise InputError(
            f"the {risk.words} has no bound of its own; give bound (--bound), the largest that a "
            "problem can have, or beyond which it does not count with clip=True (--clip)"
        )
    require(0 < largest < math.inf, f"bound must be above 0 and finite, got {largest:g}")
    return largest


def from_the_safest(
    candidates: Sequence[StopRule],
    trajectory: Trajectory,
    risk: Risk,
    *,
    unit: CostUnit,
    returns: ReturnedIterate,
    bound: float = math.inf,
) -> list[StopRule]:
    """The candidates by their mean cost on problems set aside: the most costly first.

    Where the cost itself is at risk, the least costly. Of equals the first remains. One test after
    the other ends at the first that fails, so what stands in the way is left out: a candidate
    whose risk there is above that of a bolder one (Laufer-Goldshtein et al. 2023, "Pareto
    testing"). The first is kept, for the risks of few problems are known roughly.

    Args:
        candidates: Stop rules.
        trajectory: Problems that no certificate will be about.
        risk: What is lost at a stop.
        unit: What is charged.
        returns: What a stop returns.
        bound: Beyond which the loss of a problem does not count.
    """
    sign = 1 if risk.rises_with_cost else -1
    by_cost: dict[float, StopRule] = {}
    for rule, decided in decide_all(candidates, trajectory):
        mean = steps_charged(decided, unit, trajectory.num_steps).double().mean().item()
        by_cost.setdefault(sign * mean, rule)
    ordered = [by_cost[mean] for mean in sorted(by_cost)]
    stops = _stops(ordered, trajectory, unit, returns)
    losses = risk.losses(stops).double().nan_to_num(math.inf).clamp_max(bound)
    means = losses[risk.subjects(stops)].mean(0)
    least = means.flip(0).cummin(0).values.flip(0)  # NaN of no subjects leaves all
    keeps = ~(means > least)
    keeps[0] = True
    return [rule for rule, kept in zip(ordered, keeps.tolist(), strict=True) if kept]


def set_aside(num_problems: int, groups: Sequence[Any] | Tensor | None) -> Tensor:
    """The problems on which thresholds are found, one in ten or whole groups; bool [n].

    They are drawn, for every tenth may be all that there is of one kind. Which they are depends on
    nothing that is at risk, so the rest is exchangeable as it was.
    """
    each = range(num_problems) if groups is None else groups
    codes = label_codes(each, num_problems)
    num = int(codes.max()) + 1 if num_problems else 0
    drawn = torch.randperm(num, generator=stream(0, "set aside"), device="cpu") % _SHARE == 0
    return drawn[codes]


def _stops(
    candidates: Sequence[StopRule],
    trajectory: Trajectory,
    unit: CostUnit,
    returns: ReturnedIterate,
) -> StopOutcomes:
    excess, cost = [], []
    for _, decided in decide_all(candidates, trajectory):
        excess.append(returned_excess(trajectory, decided, unit, returns).double())
        cost.append(steps_charged(decided, unit, trajectory.num_steps).double())
    lowest = trajectory.excess.double().nan_to_num(math.inf).amin(1)
    never = torch.full((trajectory.num_items,), trajectory.num_steps, device=lowest.device)
    last = returned_excess(trajectory, never, unit, returns).double()
    return StopOutcomes(torch.stack(excess, 1), torch.stack(cost, 1), lowest, last)
