"""How good stops are, from the table of costs and the steps at which problems ended."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = [
    "NUM_RESAMPLES",
    "Interval",
    "budget_for_loss",
    "captured_gain",
    "gain",
    "interval",
    "lower_hull",
    "permuted_cost",
    "randomized_budget",
    "rank_correlation",
    "resamples",
    "weighted_quantiles",
]

NUM_RESAMPLES = 2000
_BLOCK = 2_000_000  # entries of a block of resamples, which keeps memory flat


@final
@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % bootstrap interval over problems."""

    value: float
    low: float
    high: float


def resamples(
    num: int, generator: torch.Generator, clusters: Tensor | None = None
) -> Iterator[Tensor]:
    """Bootstrap resamples as weights: how often each problem is drawn, in blocks [R, num].

    Weights serve every figure of a report, so all its comparisons are paired.

    Args:
        num: Problems, n.
        generator: Draws the resamples, `NUM_RESAMPLES` in all.
        clusters: The cluster 0..S-1 of each problem, int64 [n]. Clusters are then drawn whole (the
            cluster bootstrap: Davison and Hinkley 1997, section 3.8), since problems of one run
            are alike.
    """
    units = num if clusters is None else int(clusters.max()) + 1
    size = max(1, _BLOCK // num)
    for start in range(0, NUM_RESAMPLES, size):
        rows = min(size, NUM_RESAMPLES - start)
        drawn = torch.randint(units, (rows, units), generator=generator)
        drawn += units * torch.arange(rows).unsqueeze(1)
        counts = torch.bincount(drawn.flatten(), minlength=rows * units).view(rows, units)
        yield (counts if clusters is None else counts[:, clusters]).double()


def interval(value: float, spread: Tensor) -> Interval:
    """`value` with the central 95 % of its resampled values [R]."""
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(spread, levels).tolist()
    return Interval(value, low, high)


def gain(fixed: Tensor, rule: Tensor, oracle: Tensor) -> Tensor:
    """(J_fixed - J_rule) / (J_fixed - J_oracle); NaN where the budget is as good as the oracle."""
    room = fixed - oracle
    exists = room > 1e-12 * torch.maximum(fixed.abs(), oracle.abs())
    return torch.where(exists, (fixed - rule) / room, torch.nan)


def captured_gain(table: Tensor, cost: Tensor, generator: torch.Generator) -> Interval:
    """(J_fixed - J_rule) / (J_fixed - J_oracle), problems resampled in pairs.

    1 is the oracle, who knows each problem's future; 0 is the best fixed budget, chosen in
    hindsight (again in every resample). Negative: worse than no rule at all.

    Args:
        table: J of ending at each step, shape [n, T+1].
        cost: J of the rule, shape [n].
        generator: Draws the resamples.
    """
    table, num = table.double(), len(table)
    columns = torch.column_stack(
        (table, cost.double(), table.min(1).values)
    )  # fixed budgets 0..T, rule, oracle

    def of(means: Tensor) -> Tensor:
        return gain(means[:, :-2].min(1).values, means[:, -2], means[:, -1])

    spread = torch.cat([of(weights @ columns / num) for weights in resamples(num, generator)])
    return interval(of(columns.mean(0, keepdim=True)).item(), spread.nan_to_num(0.0))


def weighted_quantiles(values: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """The least of `values` [n] with at least a share of `levels` [L] of the weight at or below.

    Args:
        values: Shape [n].
        weights: Shape [R, n], not negative.
        levels: Shape [L], in (0, 1].

    Returns:
        Shape [R, L].
    """
    order = values.argsort()
    below = weights[:, order].cumsum(1)
    # Less a little, for levels whose product with the total is not exact.
    place = torch.searchsorted(below, below[:, -1:] * levels * (1 - 1e-12))
    return values[order][place]


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of two vectors [n], ties sharing their mean rank."""
    usable = first.isfinite() & second.isfinite()
    ranks = torch.stack([_ranks(values[usable]) for values in (first, second)])
    if ranks.shape[1] < 3:
        return None
    value = torch.corrcoef(ranks)[0, 1].item()
    return value if math.isfinite(value) else None


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return ranks[inverse]


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


def budget_for_loss(mean_loss: Tensor, loss: float) -> float:
    """Least mean cost of budgets mixed at random whose mean loss is at most `loss`.

    The inverse of `randomized_budget`; infinity where no budget has so low a loss.
    """
    hull = lower_hull(mean_loss)
    if mean_loss[0] <= loss:
        return 0.0
    for left, right in itertools.pairwise(hull):
        high, low = mean_loss[left].item(), mean_loss[right].item()
        if low <= loss:
            return left + (right - left) * (high - loss) / (high - low)
    return math.inf
