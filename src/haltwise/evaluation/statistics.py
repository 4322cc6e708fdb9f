"""The one kind of interval, and the few statistics that stops are judged by."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from haltwise._core.extras import extra
from haltwise._core.tensors import widened

__all__ = [
    "ROUNDING",
    "Interval",
    "captured_gain",
    "difference",
    "jackknife",
    "least_mix",
    "rank_correlation",
    "share_interval",
]

ROUNDING = 1e-12
"""The share of two means below which their difference is none."""

_LEVEL = 0.95
_BLOCK = 2**16  # entries of a temporary, which then stays in a cache


@final
@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval, see `jackknife`; NaN where undefined."""

    value: float
    low: float
    high: float

    def of_share(self) -> Self:
        """The same of what lies between 0 and 1."""
        return replace(self, low=max(self.low, 0.0), high=min(self.high, 1.0))


def jackknife(
    statistic: Callable[[Tensor], Tensor], columns: Tensor, groups: Tensor | None = None
) -> list[Interval]:
    """Statistics of means, each with its 95 % interval by the jackknife and Student's t.

    The standard error comes from what the statistic is when one item, or one whole group, is left
    out (Efron and Tibshirani 1993, Eq. 11.5); the interval spans as many of them as Student's t
    has it at one degree of freedom less than there are items or groups. Of the mean of independent
    values, such as one a seed, it is the ordinary t interval. Nothing is random.

    Measured coverage of captured gains, 1,000 samples each (`experiments/measure_coverage.py`): of
    256 and 1,024 problems 94 to 96 % on quadratics and where Adam oscillates or sees minibatches
    (the percentile bootstrap: 90 to 96 %). On 2-parameter regression, where one problem in a
    thousand carries a twelfth of all there is to gain, 95 % counting updates (94 to 95 %), but 87
    and 91 % counting gradients (77 and 84 %). Of 40 problems 87 to 97 % (73 to 92 %).

    Args:
        statistic: From means [R, k] to statistics [R, m], row by row.
        columns: What is averaged, an item a row, float64 [n, k].
        groups: The group 0..G-1 of each item, int64 [n], where items of one group are alike. If
            there is but one, or one item, the ends of the intervals are NaN.
    """
    with extra("learn"):
        from scipy.special import stdtrit

    num = len(columns)
    sizes, totals = columns.new_ones(num), columns
    if groups is not None:
        sizes = torch.bincount(groups).to(columns.dtype)
        totals = columns.new_zeros(len(sizes), columns.shape[1]).index_add_(0, groups, columns)
    values = statistic(columns.mean(0, keepdim=True))[0].tolist()
    if len(sizes) < 2:
        return [Interval(value, math.nan, math.nan) for value in values]
    without = (columns.sum(0) - totals) / (num - sizes).unsqueeze(1)
    left_out = statistic(without)
    degrees = len(sizes) - 1
    error = left_out.std(0, correction=0) * math.sqrt(degrees)
    half = (float(stdtrit(degrees, (1 + _LEVEL) / 2)) * error).tolist()
    return [Interval(v, v - h, v + h) for v, h in zip(values, half, strict=True)]


def share_interval(
    found: Interval, events: Tensor, trials: Tensor, groups: Tensor | None = None
) -> Interval:
    """The interval of a share of trials that are events, which lies within 0 and 1.

    It is exact (Clopper and Pearson 1934) where no group has more than one trial. Where all trials
    are events, or none, nothing varies for a jackknife to see: then each group counts as one trial.
    Elsewhere it is the one found, cut at 0 and 1.

    Args:
        found: The share and the interval by `jackknife` over the groups.
        events: Of each item, shape [n].
        trials: Of each item, shape [n].
        groups: The group 0..G-1 of each item, int64 [n]; each is one of its own if None.

    Examples:
        >>> none, runs = torch.zeros(112), torch.ones(112)
        >>> round(share_interval(Interval(0.0, 0.0, 0.0), none, runs).high, 3)
        0.032
    """
    if groups is not None:
        events, trials = (
            values.new_zeros(int(groups.max()) + 1).index_add_(0, groups, values)
            for values in (events, trials)
        )
    num, happened, total = int((trials > 0).sum()), events.sum().item(), trials.sum().item()
    if num < 2 or not math.isfinite(found.low + found.high):
        return found
    if trials.max() <= 1 or happened in (0, total):
        counted = happened * num / total
        return Interval(found.value, *_clopper_pearson(counted, num))
    return found.of_share()


def _clopper_pearson(events: float, trials: int) -> tuple[float, float]:
    with extra("learn"):
        from scipy.special import betaincinv

    tail = (1 - _LEVEL) / 2
    low = betaincinv(events, trials - events + 1, tail) if events > 0 else 0.0
    high = betaincinv(events + 1, trials - events, 1 - tail) if events < trials else 1.0
    return float(low), float(high)


def captured_gain(fixed: Tensor, rule: Tensor, oracle: Tensor) -> Tensor:
    """(J_fixed - J_rule) / (J_fixed - J_oracle), docs/theory.md, Eq. (captured-gain).

    1 is the oracle, who knows each item's future; 0 the best fixed budget, chosen in hindsight.
    NaN where that budget is as good as the oracle. The mean J's of any shapes that broadcast.
    """
    room = fixed - oracle
    exists = room > ROUNDING * torch.maximum(fixed.abs(), oracle.abs())
    return torch.where(exists, difference(fixed, rule) / room, torch.nan)


def difference(one: Tensor, other: Tensor) -> Tensor:
    """Subtract; 0 where that is what rounding leaves of two sums that are the same."""
    found = one - other
    is_none = found.abs() <= ROUNDING * torch.maximum(one.abs(), other.abs())
    return torch.where(is_none & found.isfinite(), 0, found)


def least_mix(limited: Tensor, wanted: Tensor, limit: Tensor) -> Tensor:
    """The least mean of one quantity over mixtures of budgets that keep the mean of another low.

    A mixture deals two budgets to the items at random, so its means lie on the line between
    theirs. With steps limited and the loss wanted, this is the lower convex hull of (steps, loss);
    with loss limited and steps wanted its inverse.

    Args:
        limited: Of every budget, shape [R, T+1].
        wanted: Of every budget, shape [R, T+1].
        limit: What the mean of `limited` may be at most, shape [R]; where no budget keeps within
            it, the least mean is infinite.
    """
    rows = max(1, _BLOCK // limited.shape[1])
    parts = zip(limited.split(rows), wanted.split(rows), limit.split(rows), strict=True)
    return torch.cat([_least_mix(*part) for part in parts])


def _least_mix(limited: Tensor, wanted: Tensor, limit: Tensor) -> Tensor:
    bound = limit.unsqueeze(1)
    pure = wanted.masked_fill(limited > bound, torch.inf).amin(1, keepdim=True)
    below, beyond = limited < bound, limited > bound

    def mixed(here: Tensor, there: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
        """The best partner of a budget at `here` [R, 1], and what they come to, mixed as allowed.

        The line through the two is lower at the limit the lower the partner lies beside it.
        """
        x, y = limited.gather(1, here), wanted.gather(1, here)
        slope = (wanted - y) / (limited - x)
        best = (slope * there).masked_fill(~partners, torch.inf).argmin(1, keepdim=True)
        share = (bound - x) / (limited.gather(1, best) - x)
        return best, y + share * (wanted.gather(1, best) - y)

    # Of a budget within the limit and one beyond it, each is chosen anew for the other, until no
    # budget lies below the line through the two: then no mixture is better.
    right = torch.ones_like(bound)
    low = wanted.masked_fill(~below, torch.inf).argmin(1, keepdim=True)
    exists = below.any(1, keepdim=True) & beyond.any(1, keepdim=True)
    found = torch.full_like(bound, torch.inf)
    while True:
        high, _ = mixed(low, right, beyond)
        low, value = mixed(high, -right, below)
        better = exists & (value < found)
        if not better.any():
            return torch.minimum(pure, found).squeeze(1)
        found = torch.where(better, value, found)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two vectors [n], ties sharing their mean rank; NaN if none."""
    usable = first.isfinite() & second.isfinite()
    if int(usable.sum()) < 3:
        return math.nan
    return torch.corrcoef(torch.stack([_ranks(v[usable]) for v in (first, second)]))[0, 1].item()


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = widened(counts.cumsum(0)) - (widened(counts) - 1) / 2
    return ranks[inverse]
