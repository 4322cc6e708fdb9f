"""The one judge of stops: what they cost, beside budgets, an oracle and other rules."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from haltwise._core.tensors import widened
from haltwise.evaluation.records import Bin, Frontier, Reliability, StopFigures, StoppingRecord
from haltwise.evaluation.statistics import (
    ROUNDING,
    captured_gain,
    difference,
    jackknife,
    least_mix,
    rank_correlation,
    share_interval,
)
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    CostUnit,
    ReturnedIterate,
    StopPolicy,
    StopRule,
    costs,
    decide_all,
    decisions,
    returned_excess,
    steps_charged,
)

__all__ = ["Stops", "judge", "settings_frontier"]

_LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
_NUM_BINS = 10
_SOLVED = 0.05  # of the initial excess
_MAX_SETTINGS = 40


@final
@dataclass(frozen=True)
class Stops:
    """Where n items were stopped, whoever stopped them."""

    excess: Tensor
    """Of what is returned, shape [n]."""
    cost: Tensor
    """What is charged, in the unit of cost, int64 [n]."""
    policy: str = "as given"
    """What stopped them, in words."""
    dealt: Tensor | None = None
    """What a random deal hands from item to item, int64 [n]: where `returns` is known the step at
    which an item was stopped, else the step that it returns; its cost if None."""
    returns: ReturnedIterate | None = None
    """What an item returns that is stopped at a step; that step itself if None."""

    @classmethod
    def by(cls, policy: StopPolicy, trajectory: Trajectory, unit: CostUnit) -> Self:
        """The stops of a policy, whose rule reads what the trajectory shows.

        Raises:
            InputError: What is to be returned costs more than the unit counts.
        """
        decided = decisions(policy.rule, trajectory)
        return cls(
            returned_excess(trajectory, decided, unit, policy.returns),
            steps_charged(decided, unit, trajectory.num_steps),
            f"{policy.rule!r}, returns {policy.returns.value}",
            decided,
            policy.returns,
        )

    def if_dealt(self, trajectory: Trajectory, unit: CostUnit) -> tuple[Tensor, Tensor]:
        """The steps that are dealt, [n], and the excess that each item returns at each, [n, T+1].

        An item that is dealt another's stop returns what it would have returned there.
        """
        dealt = self.cost if self.dealt is None else self.dealt
        if self.returns is None:
            return dealt, trajectory.excess
        every = torch.arange(trajectory.num_steps + 1, device=dealt.device).expand(len(dealt), -1)
        return dealt, returned_excess(trajectory, every, unit, self.returns)

    def j(self, price: float) -> Tensor:
        """J of each item, docs/theory.md, Eq. (cost); shape [n]."""
        return widened(self.excess) + price * widened(self.cost)


def judge(
    trajectory: Trajectory,
    stops: Mapping[str, Stops],
    unit: CostUnit,
    *,
    price: float,
    groups: Tensor | None = None,
    hazards: Tensor | None = None,
    settings: list[tuple[float, float]] | None = None,
    num_left_out: int = 0,
    has_reference: bool = True,
) -> StoppingRecord:
    """Judge stops beside the best fixed budget and the oracle, both chosen in hindsight.

    Intervals are those of `haltwise.evaluation.statistics.jackknife`; the best fixed budget is
    chosen anew for each item or group left out.

    Args:
        trajectory: n items that stayed finite, as they run if nothing stops them, with the outputs
            that the stops judged return by.
        stops: By name; the first are those judged, with which all others are compared.
        unit: What is counted.
        price: c, in units of the loss.
        groups: The group 0..G-1 of each item, int64 [n], where items of one group are alike.
        hazards: Probabilities of stopping at each step given that it is reached, shape [n, T]:
            their reliability is judged too.
        settings: From `settings_frontier`.
        num_left_out: Items that are left out, for the record.
        has_reference: Whether excess is counted above a loss that is known.
    """
    excess = widened(trajectory.excess)
    table = costs(excess, price)
    means = table.mean(0)
    budget, best = int(means.argmin()), table.argmin(1)
    judged = next(iter(stops))
    rules = {
        **stops,
        "fixed": Stops(excess[:, budget], torch.full_like(best, budget), f"{budget} steps for all"),
        "oracle": Stops(excess.gather(1, best.unsqueeze(1)).squeeze(1), best, "the least J"),
    }
    own = stops[judged]
    return StoppingRecord(
        unit=unit,
        price=price,
        num_items=trajectory.num_items,
        num_steps=trajectory.num_steps,
        num_left_out=num_left_out,
        judged=judged,
        rules=_figures(table, rules, excess[:, 0] if has_reference else None, price, groups),
        fixed_budget=budget,
        oracle_share_at_0=_share(best == 0),
        oracle_share_at_horizon=_share(best == trajectory.num_steps),
        regret_quantiles=_quantiles(own.j(price) - table.amin(1)),
        **_against_budgets(trajectory, own, unit, price, groups, settings or []),
        reliability=None if hazards is None else _reliability(hazards, table, unit, groups),
        has_reference=has_reference,
        share_rising=_share(excess[:, -1] > excess[:, 0]),
    )


def settings_frontier(
    rules: Iterable[StopRule], returns: ReturnedIterate, trajectory: Trajectory, unit: CostUnit
) -> list[tuple[float, float]]:
    """Mean cost and mean excess of a rule's settings, by cost; of many, some spread evenly."""
    shown = list(rules)
    shown = shown[:: max(1, len(shown) // _MAX_SETTINGS)]
    return sorted(
        (
            widened(steps_charged(decided, unit, trajectory.num_steps)).mean().item(),
            widened(returned_excess(trajectory, decided, unit, returns)).mean().item(),
        )
        for _, decided in decide_all(shown, trajectory)
    )


def _share(which: Tensor) -> float:
    return widened(which).mean().item()


def _quantiles(values: Tensor) -> dict[str, float]:
    """The least value that a share of the items has or stays below, by share."""
    ranked = values.sort().values.tolist()
    return {f"{level:g}": ranked[math.ceil(level * len(ranked) - 1e-9) - 1] for level in _LEVELS}


def _figures(
    table: Tensor,
    rules: Mapping[str, Stops],
    initial: Tensor | None,
    price: float,
    groups: Tensor | None,
) -> dict[str, StopFigures]:
    num, j = len(rules), torch.stack([stops.j(price) for stops in rules.values()], 1)

    def statistics(means: Tensor) -> Tensor:
        own, budgets = means[:, :num], means[:, num:]
        fixed, oracle = budgets.amin(1, keepdim=True), own[:, -1:]
        return torch.cat((own, captured_gain(fixed, own, oracle), difference(own, own[:, :1])), 1)

    found = jackknife(statistics, torch.cat((j, table), 1), groups)
    oracle = rules["oracle"].cost
    return {
        name: StopFigures(
            policy=stops.policy,
            j=found[place],
            gain=found[num + place],
            difference=found[2 * num + place],
            mean_excess=widened(stops.excess).mean().item(),
            mean_cost=widened(stops.cost).mean().item(),
            sd_cost=widened(stops.cost).std().item() if len(j) > 1 else math.nan,
            share_at_horizon=_share(stops.cost == table.shape[1] - 1),
            share_solved=(
                math.nan if initial is None else _share(stops.excess <= _SOLVED * initial)
            ),
            rank_correlation=rank_correlation(stops.cost, oracle),
        )
        for place, (name, stops) in enumerate(rules.items())
    }


def _against_budgets(
    trajectory: Trajectory,
    stops: Stops,
    unit: CostUnit,
    price: float,
    groups: Tensor | None,
    settings: list[tuple[float, float]],
) -> dict[str, Any]:
    """The stops beside the same stops dealt at random, and beside budgets mixed at random."""
    excess, num = widened(trajectory.excess), trajectory.num_steps + 1
    steps = torch.arange(num, dtype=torch.float64, device=excess.device).unsqueeze(0)
    dealt, returned = stops.if_dealt(trajectory, unit)
    own = torch.stack((widened(stops.excess), widened(stops.cost)), 1)
    columns = torch.cat((excess, widened(returned), widened(one_hot(dealt, num)), own), 1)

    def statistics(means: Tensor) -> Tensor:
        curve, returned, ends, own = means.split((num, num, num, 2), 1)
        loss, cost = own.unbind(1)
        # The mean over all deals, exactly. What stops cost is the same, whoever is dealt them.
        permuted = (returned * ends).sum(1) + price * cost
        # Where all stops are one budget it leaves the very same, but for rounding.
        gap, place = (curve - loss.unsqueeze(1)).abs().min(1)
        same = curve.take_along_dim(place.unsqueeze(1), 1).squeeze(1)
        limit = torch.where(gap <= ROUNDING * curve.abs().amax(1), same, loss)
        needed = least_mix(curve, steps.expand_as(curve), limit)
        needed = torch.where(needed > num * ROUNDING, needed, 0)
        saved = difference(torch.ones_like(cost), cost / needed.clamp_max(num - 1))
        needed = torch.where(needed.isfinite(), needed, torch.nan)
        return torch.stack((difference(permuted, loss + price * cost), saved, permuted, needed), 1)

    skill, saved, permuted, needed = jackknife(statistics, columns, groups)
    mean = excess.mean(0).expand(num, num)
    hull = least_mix(steps.expand(num, num), mean, steps.squeeze(0))
    frontier = Frontier(
        mean_excess=mean[0].tolist(),
        hull=(hull == mean[0]).nonzero().flatten().tolist(),
        cost_for_equal_excess=needed.value,
        saved=saved,
        settings=settings,
    )
    return {"permuted_j": permuted.value, "skill": skill, "frontier": frontier}


def _reliability(
    hazards: Tensor, table: Tensor, unit: CostUnit, groups: Tensor | None
) -> Reliability:
    """Of all (item, t) that the oracle reaches, how often it stops where the hazard is so high."""
    hazards = widened(hazards)
    if unit is CostUnit.GRADIENTS:
        # A decision at t ends at t + 1; at T - 1 both answers end at T.
        table, hazards = table[:, 1:], hazards[:, :-1]
    stop = table.argmin(1, keepdim=True)
    steps = torch.arange(hazards.shape[1], device=hazards.device)
    reached, event = steps <= stop, steps == stop
    place = (hazards * _NUM_BINS).long().clamp_max(_NUM_BINS - 1)
    cases, events, sums = (
        hazards.new_zeros(len(hazards), _NUM_BINS).scatter_add(1, place, widened(values))
        for values in (reached, event, hazards * reached)
    )
    frequency = jackknife(
        lambda means: means[:, :_NUM_BINS] / means[:, _NUM_BINS:],
        torch.cat((events, cases), 1),
        groups,
    )
    count, total = cases.sum(0), cases.sum()
    return Reliability(
        num_cases=int(total),
        mean_hazard=(sums.sum() / total).item(),
        frequency=(events.sum() / total).item(),
        error=((sums - events).sum(0).abs().sum() / total).item(),
        bins=[
            Bin(
                int(count[k]),
                (sums[:, k].sum() / count[k]).item(),
                share_interval(frequency[k], events[:, k], cases[:, k], groups),
            )
            for k in range(_NUM_BINS)
            if count[k] > 0
        ],
    )
