"""How good stops are, from the table of costs and the steps at which problems ended."""

import itertools
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Interval", "captured_gain", "lower_hull", "permuted_cost", "randomized_budget"]

_NUM_RESAMPLES = 2000


@final
@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % bootstrap interval over problems."""

    value: float
    low: float
    high: float


def captured_gain(table: Tensor, cost: Tensor, generator: torch.Generator) -> Interval:
    """(J_fixed - J_rule) / (J_fixed - J_oracle), problems resampled in pairs.

    1 is the oracle, who knows each problem's future; 0 is the best fixed budget, chosen in
    hindsight (again in every resample). Negative: worse than no rule at all.

    Args:
        table: J of ending at each step, shape [n, T+1].
        cost: J of the rule, shape [n].
        generator: Draws the resamples.
    """
    table = table.double()
    num = len(table)
    columns = torch.column_stack(
        (table, cost.double(), table.min(1).values)
    )  # fixed budgets 0..T, rule, oracle
    # Multinomial counts of a resample, in blocks that keep memory flat.
    resampled = []
    for _ in range(_NUM_RESAMPLES):
        index = torch.randint(num, (num,), generator=generator)
        resampled.append(torch.bincount(index, minlength=num).double() @ columns / num)

    def gain(means: Tensor) -> Tensor:
        fixed = means[..., :-2].min(-1).values
        return (fixed - means[..., -2]) / (fixed - means[..., -1])

    spread = gain(torch.stack(resampled)).nan_to_num(0.0)
    low, high = torch.quantile(spread, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(gain(columns.mean(0)).item(), low, high)


def permuted_cost(table: Tensor, end: Tensor) -> float:
    """Mean J if the rule's stops are dealt to the problems at random, exactly (no sampling).

    The difference to the rule's own J is skill that depends on the problem; what is left beside
    the best fixed budget is only the shape of the distribution of stops.
    """
    counts = torch.bincount(end, minlength=table.shape[1]).to(table.dtype)
    return (table.mean(0) @ counts / len(end)).item()


def lower_hull(mean_loss: Tensor) -> list[int]:
    """Budgets on the lower convex hull of (budget, mean loss), in increasing order.

    Mixing two budgets at random over problems reaches every point between them.

    Args:
        mean_loss: Mean loss of ending at each step, shape [T+1].
    """
    hull: list[int] = []
    values = mean_loss.tolist()
    for step, value in enumerate(values):
        while len(hull) >= 2:
            first, second = hull[-2], hull[-1]
            slope = (value - values[first]) / (step - first)
            if values[second] < values[first] + slope * (second - first):
                break
            hull.pop()
        hull.append(step)
    return hull


def randomized_budget(mean_loss: Tensor, mean_cost: float) -> float:
    """Least mean loss of budgets mixed at random with a mean cost of `mean_cost`."""
    hull = lower_hull(mean_loss)
    for left, right in itertools.pairwise(hull):
        if left <= mean_cost <= right:
            share = (mean_cost - left) / (right - left)
            return ((1 - share) * mean_loss[left] + share * mean_loss[right]).item()
    return mean_loss[hull[-1]].item()
