"""Every figure of the judge by brute force and in closed form."""

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from stopping_cases import (
    DOUBLE,
    GROUPS,
    HAZARDS,
    LOSSES,
    ORACLE,
    PRICE,
    STEPS,
    STOPS,
    TABLE,
    N,
    T,
    ended,
    judged,
    make_losses,
)
from torch import Tensor

from haltwise import InputError
from haltwise._core.json import to_json
from haltwise._core.random import stream
from haltwise.evaluation import Stops, stopping_report
from haltwise.evaluation.judge import judge, settings_frontier
from haltwise.processes import Trajectory
from haltwise.stop_rules import (
    CostUnit,
    FixedBudget,
    HazardThreshold,
    ReturnedIterate,
    StopPolicy,
    total_cost,
)

both_units = pytest.mark.parametrize("unit", CostUnit)


@both_units
def test_j_gain_and_regret_are_those_of_a_loop(unit: CostUnit) -> None:
    record = judged(unit=unit)
    ends = [ended(stop, unit) for stop in STOPS.tolist()]
    rule = [TABLE[i, end].item() for i, end in enumerate(ends)]
    oracle = [min(row) for row in TABLE.tolist()]
    fixed = min((sum(column) / N, t) for t, column in enumerate(zip(*TABLE.tolist(), strict=True)))
    mean_rule, mean_oracle = sum(rule) / N, sum(oracle) / N
    assert record.stops.j.value == pytest.approx(mean_rule)
    assert record.rules["oracle"].j.value == pytest.approx(mean_oracle)
    assert record.rules["fixed"].j.value == pytest.approx(fixed[0])
    assert record.fixed_budget == fixed[1]
    gain = (fixed[0] - mean_rule) / (fixed[0] - mean_oracle)
    assert record.stops.gain.value == pytest.approx(gain)
    assert record.rules["oracle"].difference.value == pytest.approx(mean_oracle - mean_rule)
    regrets = sorted(a - b for a, b in zip(rule, oracle, strict=True))
    for level, value in record.regret_quantiles.items():
        assert value == pytest.approx(regrets[math.ceil(float(level) * N - 1e-9) - 1])
    assert (record.num_items, record.num_steps, record.num_left_out) == (N, T, 0)


@both_units
def test_figures_of_the_stops_are_those_of_numpy(unit: CostUnit) -> None:
    record = judged(unit=unit)
    ends = np.array([ended(stop, unit) for stop in STOPS.tolist()])
    found = record.stops
    excess = LOSSES.numpy()[np.arange(N), ends]
    assert found.mean_excess == pytest.approx(excess.mean())
    assert found.mean_cost == pytest.approx(ends.mean())
    assert found.sd_cost == pytest.approx(ends.std(ddof=1))
    assert found.rank_correlation == pytest.approx(spearmanr(ends, ORACLE.numpy()).statistic)
    assert found.share_at_horizon == pytest.approx((ends == T).mean())
    assert math.isnan(found.share_solved)  # nobody knows what can be had
    known = judge(
        Trajectory(LOSSES, LOSSES),
        {"given": Stops(torch.from_numpy(excess), torch.from_numpy(ends))},
        unit,
        price=PRICE,
    )
    solved = (excess <= 0.05 * LOSSES[:, 0].numpy()).mean()
    assert known.stops.share_solved == pytest.approx(solved)
    assert record.oracle_share_at_horizon == pytest.approx((ORACLE == T).double().mean().item())
    assert record.oracle_share_at_0 == pytest.approx((ORACLE == 0).double().mean().item())


@both_units
def test_dealt_at_random_is_the_mean_over_all_deals(unit: CostUnit) -> None:
    record = judged(unit=unit)
    ends = [ended(stop, unit) for stop in STOPS.tolist()]
    dealt = sum(TABLE[i, end].item() for i in range(N) for end in ends) / N**2
    assert record.permuted_j == pytest.approx(dealt)
    assert record.skill.value == pytest.approx(dealt - record.stops.j.value)


@pytest.mark.parametrize("iterate", [ReturnedIterate.CURRENT, ReturnedIterate.BEST, None])
@both_units
def test_whoever_is_dealt_a_stop_returns_what_the_stops_return(
    unit: CostUnit, iterate: ReturnedIterate | None
) -> None:
    """The best so far, or the point at the stop, of the item that is dealt it; else that step."""
    losses = LOSSES + torch.randn(N, T + 1, generator=stream(2), dtype=DOUBLE).abs()
    stops = STOPS.clamp_max(T - 1)

    def returned(item: int, by: int) -> int:
        if iterate is None:
            return int(stops[by]) // 2
        stop = int(stops[by])
        return int(losses[item, : stop + 1].argmin()) if iterate is ReturnedIterate.BEST else stop

    own = torch.tensor([returned(i, i) for i in range(N)])
    record = stopping_report(
        losses, stops, price=PRICE, unit=unit, returned=own, baselines=False, groups=GROUPS
    )
    cost = np.mean([ended(stop, unit) for stop in stops.tolist()])
    dealt = np.mean([[losses[i, returned(i, k)].item() for k in range(N)] for i in range(N)])
    assert record.permuted_j == pytest.approx(dealt + PRICE * cost)
    assert record.skill.value == pytest.approx(record.permuted_j - record.stops.j.value)


@both_units
def test_stops_drawn_blindly_do_not_tell_items_apart(unit: CostUnit) -> None:
    """They return the better of two points that all items swing between, whatever an item does."""
    swing = torch.where(STEPS == 0, 2.0, torch.where(STEPS % 2 == 0, 0.1, 0.9))
    losses = swing + 0.01 * torch.randn(N, T + 1, generator=stream(3), dtype=DOUBLE)
    stops = 2 * torch.randint(1, T // 2, (N,), generator=stream(4))
    record = stopping_report(losses, stops, price=0.001, unit=unit, returned=stops, baselines=False)
    assert record.skill.low <= 0 <= record.skill.high
    assert record.skill.high < 0.01


def test_what_a_model_holds_is_dealt_with_the_stops() -> None:
    outputs = {
        "hazard_logits": torch.randn(N, T, 2, generator=stream(5), dtype=DOUBLE),
        "hold_logits": torch.randn(N, T, generator=stream(6), dtype=DOUBLE),
    }
    trajectory = Trajectory(LOSSES, LOSSES, outputs=outputs)
    policy = StopPolicy(HazardThreshold(0.5), ReturnedIterate.LEARNED)
    stops = Stops.by(policy, trajectory, CostUnit.GRADIENTS)
    record = judge(trajectory, {"own": stops}, CostUnit.GRADIENTS, price=PRICE)
    logits = outputs["hazard_logits"][..., 0] >= 0.5
    decided = [int(row.int().argmax()) if row.any() else T for row in logits]
    hold = outputs["hold_logits"] > 0
    dealt = [
        LOSSES[i, t if t == T or hold[i, t] else t + 1].item() for i in range(N) for t in decided
    ]
    cost = np.mean([min(t + 1, T) for t in decided])
    assert record.permuted_j == pytest.approx(np.mean(dealt) + PRICE * cost)


@pytest.mark.parametrize("rise", [0.0, 0.3])
def test_no_mix_of_two_budgets_beats_the_frontier(rise: float) -> None:
    """A fine grid over pairs of budgets and their shares finds nothing better."""
    losses = LOSSES + rise * (STEPS - 4).clamp_min(0)  # late steps may harm
    stops = STOPS if rise == 0 else (STOPS + 3).clamp_max(T)
    record = judged(losses, stops)
    found, means = record.frontier, losses.mean(0).tolist()
    assert found.mean_excess == pytest.approx(means)
    shares, needed = torch.linspace(0, 1, 2001, dtype=DOUBLE), math.inf
    below = dict.fromkeys(range(T + 1), math.inf)  # the least mean loss of mixes that cost t
    for a, b in itertools.combinations(range(T + 1), 2):
        steps, loss = a + shares * (b - a), means[a] + shares * (means[b] - means[a])
        if (loss <= record.stops.mean_excess).any():
            needed = min(needed, steps[loss <= record.stops.mean_excess].min().item())
        for t in range(a, T + 1):
            below[t] = min(below[t], loss[steps <= t].min().item())
    assert found.cost_for_equal_excess == pytest.approx(needed, abs=6e-3)
    assert found.saved.value == pytest.approx(1 - record.stops.mean_cost / needed, abs=2e-3)
    assert found.hull == [t for t in range(T + 1) if means[t] <= below[t] + 2e-4]


def test_a_loss_that_no_budget_reaches_is_unknown() -> None:
    dips = torch.ones(N, T + 1, dtype=DOUBLE)
    dips[torch.arange(N), torch.arange(N) % T] = 0  # each item is solved at one step only
    record = judged(dips, torch.arange(N) % T)
    assert math.isnan(record.frontier.cost_for_equal_excess)
    assert record.frontier.saved.value == pytest.approx(1 - record.stops.mean_cost / T)


@both_units
def test_reliability_counts_what_the_oracle_reaches(unit: CostUnit) -> None:
    record = judged(unit=unit, hazards=HAZARDS)
    cases: dict[int, list[tuple[float, bool]]] = {}
    for i in range(N):
        # The decisions 0, 1, ... and what each leads to; the last is forced.
        options = [TABLE[i, t].item() for t in range(unit is CostUnit.GRADIENTS, T + 1)]
        best = options.index(min(options))
        for t in range(min(best + 1, len(options) - 1)):
            hazard = HAZARDS[i, t].item()
            cases.setdefault(int(hazard * 10), []).append((hazard, t == best))
    found = record.reliability
    assert found is not None
    total = sum(map(len, cases.values()))
    assert found.num_cases == total
    error = 0.0
    for place, entry in zip(sorted(cases), found.bins, strict=True):
        hazard, frequency = (
            sum(column) / len(cases[place]) for column in zip(*cases[place], strict=True)
        )
        assert entry.num_cases == len(cases[place])
        assert entry.mean_hazard == pytest.approx(hazard)
        assert entry.frequency.value == pytest.approx(frequency)
        error += len(cases[place]) / total * abs(hazard - frequency)
    assert found.error == pytest.approx(error)


def test_a_true_hazard_is_reliable() -> None:
    """Items whose best step is drawn from the hazards themselves."""
    num, steps = 4000, 10
    hazards = 0.6 * torch.rand(num, steps, generator=stream(5), dtype=DOUBLE)
    draws = torch.rand(num, steps, generator=stream(6), dtype=DOUBLE) < hazards
    best = torch.where(draws.any(1), draws.int().argmax(1), steps)
    losses = torch.ones(num, steps + 1, dtype=DOUBLE)
    losses[torch.arange(num), best] = -5
    true, squared = (
        judged(losses, best, hazards=given).reliability for given in (hazards, hazards**2)
    )
    assert true is not None
    assert squared is not None
    assert true.error < 0.02
    assert squared.error > 0.1
    for entry in true.bins:
        half = entry.frequency.high - entry.frequency.low
        assert abs(entry.mean_hazard - entry.frequency.value) < half


def test_the_oracles_stops_capture_everything() -> None:
    found = judged(stops=ORACLE).stops
    assert astuple(found.gain) == pytest.approx((1, 1, 1))
    assert found.rank_correlation == pytest.approx(1)


def test_the_best_fixed_budget_captures_nothing_and_has_no_skill() -> None:
    record = judged(stops=torch.full((N,), int(TABLE.mean(0).argmin())))
    assert record.stops.gain.value == pytest.approx(0)
    assert astuple(record.skill) == pytest.approx((0, 0, 0), abs=1e-12)
    assert record.stops.sd_cost == 0
    assert math.isnan(record.stops.rank_correlation)


def test_permuted_stops_have_no_skill() -> None:
    skills = [
        judged(stops=ORACLE[torch.randperm(N, generator=stream(7, trial))]).skill
        for trial in range(20)
    ]
    assert abs(np.mean([skill.value for skill in skills])) < 0.05
    assert sum(skill.low <= 0 <= skill.high for skill in skills) >= 16
    assert judged(stops=ORACLE).skill.low > 0


def test_intervals_cover_what_they_should() -> None:
    """Figures of a population of 20,000, from samples of 150."""
    population = make_losses(20_000, seed=9)
    best = (population + PRICE * STEPS).argmin(1)
    stops = (best + torch.randint(-1, 2, (20_000,), generator=stream(8))).clamp(0, T)

    def figures(losses: Tensor, stops: Tensor) -> list[tuple[float, float, float]]:
        record = judged(losses, stops)
        own = record.stops
        found = (own.j, own.gain, record.skill, record.frontier.saved)
        return [(each.value, each.low, each.high) for each in found]

    truth = [value for value, _, _ in figures(population, stops)]
    covered = torch.zeros(len(truth))
    for trial in range(60):
        chosen = torch.randint(20_000, (150,), generator=stream(10, trial))
        found = figures(population[chosen], stops[chosen])
        covered += torch.tensor(
            [low <= true <= high for true, (_, low, high) in zip(truth, found, strict=True)]
        )
    assert (covered >= 53).all(), covered
    assert (covered < 60).any(), covered  # nor are they too wide


def test_items_of_one_group_count_once() -> None:
    """Ten copies of every item, told apart by group only: no surer than the originals."""
    copies = LOSSES.repeat(10, 1), STOPS.repeat(10)
    alone = judged().stops
    naive = judged(*copies).stops
    clustered = judged(*copies, groups=torch.arange(N).repeat(10)).stops
    for name in ("j", "gain"):
        width = [
            getattr(found, name).high - getattr(found, name).low
            for found in (alone, naive, clustered)
        ]
        assert width[1] < 0.5 * width[0]
        assert width[2] == pytest.approx(width[0], rel=1e-6)


def test_a_single_group_has_no_interval() -> None:
    found = judged(groups=torch.zeros(N, dtype=torch.int64)).stops.gain
    assert found.value == judged().stops.gain.value
    assert math.isnan(found.low)


def test_a_price_that_leaves_nothing_to_decide_leaves_the_gain_undefined() -> None:
    losses = torch.linspace(1, 0, T + 1, dtype=DOUBLE) * torch.linspace(1, 2, N)[:, None]
    for price in (100.0, 1e-9):
        record = judged(losses, price=price)
        assert math.isnan(record.stops.gain.value)
        assert {record.oracle_share_at_0, record.oracle_share_at_horizon} == {0.0, 1.0}


@both_units
def test_stops_of_a_policy_cost_what_the_policy_costs(unit: CostUnit) -> None:
    logits = torch.randn(N, T, 2, generator=stream(3), dtype=DOUBLE)
    hold = torch.randn(N, T, generator=stream(4), dtype=DOUBLE)
    seen = LOSSES + torch.randn(LOSSES.shape, generator=stream(5), dtype=DOUBLE)
    trajectory = Trajectory(seen, LOSSES, outputs={"hazard_logits": logits, "hold_logits": hold})
    rule = HazardThreshold(0.3, unit.decision_time)
    for returns in ReturnedIterate:
        if unit is CostUnit.UPDATES and returns.value in ("next", "learned"):
            with pytest.raises(InputError, match="cannot return"):
                Stops.by(StopPolicy(rule, returns), trajectory, unit)
            continue
        stops = Stops.by(StopPolicy(rule, returns), trajectory, unit)
        decided = torch.where(
            (logits[..., unit.decision_time] >= 0.3).any(1),
            (logits[..., unit.decision_time] >= 0.3).int().argmax(1),
            T,
        )
        expected = total_cost(trajectory, decided, unit, returns, price=PRICE)
        torch.testing.assert_close(stops.j(PRICE), expected)
        points = settings_frontier([rule, FixedBudget(2)], returns, trajectory, unit)
        means = (stops.cost.double().mean().item(), stops.excess.mean().item())
        assert any(point == pytest.approx(means) for point in points)


def test_the_record_is_a_function_of_its_arguments() -> None:
    first, second = (judged(baselines=True, groups=GROUPS) for _ in range(2))
    assert to_json(first) == to_json(second)


def test_the_best_fixed_budget_gains_nothing_and_the_oracle_all() -> None:
    """Not what rounding leaves of a mean of many, such as -8e-14 %."""
    generator = torch.Generator().manual_seed(0)
    for num in (100, 300, 999):
        excess = torch.rand(num, 16, generator=generator).cumsum(1).flip(1).double() / 7
        found = judge(
            Trajectory(excess, excess),
            {"own": Stops(excess[:, 3], torch.full((num,), 3), "three steps")},
            CostUnit.UPDATES,
            price=0.02,
        )
        assert found.rules["fixed"].gain.value == 0
        assert found.rules["oracle"].gain.value == 1
