"""The jackknife in closed form, mixtures of budgets by brute force, and ranks against SciPy."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from haltwise._core.random import stream
from haltwise.evaluation.statistics import (
    Interval,
    captured_gain,
    jackknife,
    least_mix,
    rank_correlation,
    share_interval,
)

DOUBLE = torch.float64


def identity(means: Tensor) -> Tensor:
    return means


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = torch.randn(7, 1, generator=stream(0), dtype=DOUBLE)
    (found,) = jackknife(identity, values)
    column = values.squeeze(1).numpy()
    low, high = stats.t.interval(0.95, 6, column.mean(), stats.sem(column))
    assert (found.value, found.low, found.high) == pytest.approx((column.mean(), low, high))


def test_groups_of_equal_size_count_as_their_means() -> None:
    values = torch.randn(12, 1, generator=stream(1), dtype=DOUBLE)
    groups = torch.arange(12) % 4
    (found,) = jackknife(identity, values, groups)
    means = torch.stack([values[groups == group].mean(0) for group in range(4)])
    (expected,) = jackknife(identity, means)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_jackknife_leaves_out_one_item_at_a_time() -> None:
    """Of a ratio, by a loop; groups of unequal sizes."""
    columns = torch.rand(9, 2, generator=stream(2), dtype=DOUBLE) + 1
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3])

    def ratio(means: Tensor) -> Tensor:
        return means[:, :1] / means[:, 1:]

    (found,) = jackknife(ratio, columns, groups)
    left_out = []
    for group in range(4):
        kept = columns[groups != group].mean(0)
        left_out.append((kept[0] / kept[1]).item())
    mean = sum(left_out) / 4
    error = math.sqrt(3 / 4 * sum((value - mean) ** 2 for value in left_out))
    half = stats.t.ppf(0.975, 3) * error
    value = (columns[:, 0].mean() / columns[:, 1].mean()).item()
    assert (found.value, found.low, found.high) == pytest.approx(
        (value, value - half, value + half)
    )


def test_the_interval_of_a_captured_gain_covers_what_it_should() -> None:
    """The 95 % interval holds the gain of the population about 95 times in 100."""
    population = torch.rand(20_000, 5, generator=stream(3), dtype=DOUBLE)
    population += torch.tensor([0.2, 0.1, 0.0, 0.1, 0.2])  # one fixed budget is clearly the best
    end = (population[:, 0] > 0.5).long() * 2
    cost = population.gather(1, end.unsqueeze(1))
    columns = torch.cat((population, cost, population.amin(1, keepdim=True)), 1)

    def gain(means: Tensor) -> Tensor:
        return captured_gain(means[:, :5].amin(1), means[:, 5], means[:, 6]).unsqueeze(1)

    truth, covered = gain(columns.mean(0, keepdim=True)).item(), 0
    for trial in range(200):
        chosen = torch.randint(20_000, (200,), generator=stream(4, trial))
        (found,) = jackknife(gain, columns[chosen])
        covered += found.low <= truth <= found.high
    assert 180 <= covered <= 198


def test_a_gain_is_undefined_where_there_is_no_room() -> None:
    fixed = torch.tensor([2.0, 1.0], dtype=DOUBLE)
    gain = captured_gain(fixed, torch.tensor([1.5, 1.5], dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))
    assert gain[0] == 0.5
    assert gain[1].isnan()


@pytest.mark.parametrize("block", [1, 2**16])
def test_mixtures_of_budgets_are_those_of_a_fine_grid(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltwise.evaluation.statistics._BLOCK", block)
    curves = torch.rand(20, 7, generator=stream(5), dtype=DOUBLE)
    steps = torch.arange(7, dtype=DOUBLE).expand(20, 7)
    limits = 7 * torch.rand(20, generator=stream(6), dtype=DOUBLE) - 0.5
    found = least_mix(steps, curves, limits)
    shares = torch.linspace(0, 1, 4001, dtype=DOUBLE)
    for curve, limit, value in zip(curves, limits.tolist(), found.tolist(), strict=True):
        best = math.inf
        for a in range(7):
            for b in range(a, 7):
                cost, loss = a + shares * (b - a), curve[a] + shares * (curve[b] - curve[a])
                best = min(best, loss[cost <= limit].min().item() if limit >= a else math.inf)
        assert value == pytest.approx(best, abs=2e-3) or value == best == math.inf


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("num", [1, 2, 5, 9])
def test_mixtures_are_the_best_of_all_pairs(num: int, whole: bool) -> None:
    """Whatever lies in whichever order, on the limit and in rows that allow none."""
    limited, wanted = (
        draw.mul(4).floor() if whole else draw
        for draw in torch.rand(2, 200, num, generator=stream(num), dtype=torch.float64)
    )
    limits = torch.linspace(-0.1, 4.1 if whole else 1.1, 200, dtype=torch.float64)
    limits[::3] = limited[::3, 0]
    found = least_mix(limited, wanted, limits).tolist()
    for xs, ys, limit, value in zip(limited, wanted, limits.tolist(), found, strict=True):
        points = [*zip(xs.tolist(), ys.tolist(), strict=True)]
        within = [point for point in points if point[0] <= limit]
        least = min((y for _, y in within), default=math.inf)
        for x, y in within:
            mixed = [y + (limit - x) / (p - x) * (q - y) for p, q in points if p > limit]
            least = min([least, *mixed])
        assert value == pytest.approx(least, abs=1e-12)


def test_mixtures_of_a_thousand_budgets_take_no_memory_of_pairs() -> None:
    """Which would be a minute, and gigabytes, for some thousands of problems."""
    steps = torch.arange(1001, dtype=torch.float64).expand(2000, -1)
    curves = torch.rand(2000, 1, generator=stream(0), dtype=torch.float64) * 0.99**steps
    limits = torch.full((2000,), 10.5, dtype=torch.float64)
    expected = curves[:, 10:12].mean(1)  # of a convex curve
    torch.testing.assert_close(least_mix(steps, curves, limits), expected)


def test_mixing_for_a_loss_inverts_mixing_for_a_cost() -> None:
    curve = torch.tensor([[5.0, 4.5, 1.0, 2.0, 0.9, 0.2]], dtype=DOUBLE)
    steps = torch.arange(6, dtype=DOUBLE).unsqueeze(0)
    for cost in torch.linspace(0, 5, 23, dtype=DOUBLE):
        loss = least_mix(steps, curve, cost.unsqueeze(0))
        assert least_mix(curve, steps, loss).item() == pytest.approx(cost.item())
    assert least_mix(curve, steps, torch.tensor([0.1])).item() == math.inf
    assert least_mix(curve, steps, torch.tensor([6.0])).item() == 0


def test_ranks_share_ties_and_leave_out_what_is_not_finite() -> None:
    first = torch.tensor([1.0, 2.0, 2.0, 4.0, 0.0, math.nan], dtype=DOUBLE)
    second = torch.tensor([3.0, 3.0, 1.0, 5.0, 0.0, 1.0], dtype=DOUBLE)
    expected = stats.spearmanr(first[:5].numpy(), second[:5].numpy()).statistic
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert math.isnan(rank_correlation(first, torch.ones(6)))
    assert math.isnan(rank_correlation(first[:2], second[:2]))


def test_the_interval_of_a_share_is_a_share_and_exact_where_trials_are_single() -> None:
    for events, num in ((0, 112), (1, 112), (30, 112), (112, 112)):
        happened = torch.zeros(num, dtype=torch.float64)
        happened[:events] = 1
        own = jackknife(identity, happened.unsqueeze(1))[0]
        found = share_interval(own, happened, torch.ones(num))
        exact = stats.binomtest(events, num).proportion_ci(0.95, "exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
        assert found.low < found.high


def test_the_interval_of_a_share_counts_groups_where_nothing_varies() -> None:
    groups = torch.arange(40) % 8
    trials = torch.ones(40)
    for events in (torch.zeros(40), torch.ones(40)):
        own = Interval(events[0].item(), events[0].item(), events[0].item())
        found = share_interval(own, events, trials, groups)
        exact = stats.binomtest(8 * int(events[0]), 8).proportion_ci(0.95, "exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    few = torch.zeros(40)
    few[3] = 1
    own = jackknife(identity, few.double().unsqueeze(1), groups)[0]
    assert own.low < 0
    found = share_interval(own, few, trials, groups)
    assert (found.low, found.high) == (0.0, own.high)
    unknown = Interval(0.0, math.nan, math.nan)
    assert share_interval(unknown, few, trials, torch.zeros(40, dtype=torch.int64)) is unknown
