"""The test that never ends, against a slow sum over beginnings, and its false alarms."""

import json
import math
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from hypothesis import given
from hypothesis import strategies as st

from haltwise import InputError
from haltwise.certificates import EProcess, RiskMonitor

levels = st.sampled_from([0.01, 0.05, 0.4, 3.0])
streams = st.lists(st.sampled_from([0.0, 0.02, 0.3, 1.0, 7.0]), min_size=1, max_size=40)


def slow_wealth(losses: list[float], level: float) -> float:
    """Every bet from every beginning, with what has not begun."""
    bets: list[float] = []
    bet = 0.5 / level
    while bet >= 0.25 * (1 - 1e-12) or not bets:
        bets.append(bet)
        bet /= 2
    total = sum(bet**-0.5 for bet in bets)
    terms, waiting = [], 1.0
    for begin in range(len(losses)):
        rest = 0.5 / (1 + math.log(begin + 1))
        for bet in bets:
            gains = [1 + bet * (loss - level) for loss in losses[begin:]]
            terms.append((waiting - rest) * bet**-0.5 / total * math.prod(gains))
        waiting = rest
    return math.fsum([*terms, waiting])


@given(losses=streams, level=levels)
def test_the_wealth_is_a_sum_over_bets_and_beginnings(losses: list[float], level: float) -> None:
    test = EProcess(level, 0.99)
    for place, loss in enumerate(losses, 1):
        before, alarm = test.wealth, test.alarm
        test.update(loss)
        if alarm is None:
            assert test.wealth == pytest.approx(slow_wealth(losses[:place], level), rel=1e-9)
            assert (test.alarm is not None) == (test.wealth * (1 - 0.99) >= 1)
        else:
            assert (test.wealth, test.alarm) == (before, alarm)
    assert test.num == len(losses)
    assert test.mean == pytest.approx(sum(losses) / len(losses))


def test_the_wealth_of_a_fair_game_stays_on_average() -> None:
    """All streams of six losses of 0 or 1 whose chance is the level, weighted by their chance."""
    level, mean = 0.3, 0.0
    for stream in range(2**6):
        losses = [float(stream >> i & 1) for i in range(6)]
        test = EProcess(level, 1 - 1e-9)
        for loss in losses:
            test.update(loss)
        mean += test.wealth * math.prod(level if loss else 1 - level for loss in losses)
    assert mean == pytest.approx(1, rel=1e-12)


@given(losses=streams, place=st.integers(0), more=st.floats(0, 2), level=levels)
def test_a_larger_loss_is_never_weaker_evidence(
    losses: list[float], place: int, more: float, level: float
) -> None:
    worse = [*losses]
    worse[place % len(losses)] += more
    tests = [EProcess(level, 1 - 1e-15), EProcess(level, 1 - 1e-15)]
    for test, stream in zip(tests, (losses, worse), strict=True):
        for loss in stream:
            test.update(loss)
    if tests[0].alarm is None and tests[1].alarm is None:
        assert tests[1].wealth >= tests[0].wealth * (1 - 1e-12)


@pytest.mark.parametrize("size", [1.0, 0.25, 40.0])
def test_false_alarms_are_as_rare_as_promised(size: float) -> None:
    alarms = 0
    for seed in range(100):
        chance = 0.05 / size
        losses = (torch.rand(1000, generator=seeded(seed), dtype=DOUBLE) < chance) * size
        test = EProcess(0.05, 0.9)
        alarms += any(test.update(loss) for loss in losses.tolist())
    assert alarms <= 10 + 3.8 * math.sqrt(100 * 0.1 * 0.9)


def test_a_doubled_risk_is_noticed_early_and_late() -> None:
    delays: dict[int, list[int]] = {0: [], 2000: []}
    for quiet, found in delays.items():
        for seed in range(30):
            uniform = torch.rand(quiet + 1500, generator=seeded(seed), dtype=DOUBLE)
            chance = torch.where(torch.arange(quiet + 1500) < quiet, 0.025, 0.1)
            test = EProcess(0.05, 0.95)
            for loss in (uniform < chance).double().tolist():
                if test.update(loss):
                    break
            found.append(9999 if test.alarm is None else test.alarm - quiet)
    assert sorted(delays[0])[15] <= 200
    assert sorted(delays[2000])[15] <= 700


@given(losses=streams, cut=st.integers(0, 40))
def test_a_resumed_test_is_the_uninterrupted_one(losses: list[float], cut: int) -> None:
    whole, first = EProcess(0.05, 0.9), EProcess(0.05, 0.9)
    for loss in losses:
        whole.update(loss)
    for loss in losses[:cut]:
        first.update(loss)
    second = EProcess(0.05, 0.9)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for loss in losses[cut:]:
        second.update(loss)
    assert second.state_dict() == whole.state_dict()


def test_losses_of_any_size_leave_a_state_of_numbers() -> None:
    test, other = EProcess(0.05, 0.9), EProcess(0.05, 0.9)
    for _ in range(3):
        assert test.update(1.7e308)
    other.load_state_dict(json.loads(json.dumps(test.state_dict(), allow_nan=False)))
    assert other.state_dict() == test.state_dict()
    assert other.alarm == 1
    assert 1e300 < other.wealth < math.inf


@pytest.mark.parametrize("loss", [-1e-9, math.nan, math.inf, "0.1"])
def test_impossible_losses_are_refused_and_change_nothing(loss: Any) -> None:
    test = EProcess(0.05, 0.9)
    before = test.state_dict()
    with pytest.raises(InputError, match="loss must be"):
        test.update(loss)
    assert test.state_dict() == before


def test_the_state_of_another_test_is_refused() -> None:
    with pytest.raises(InputError, match=r"state is of a test at level 0.05 and confidence 0.9,"):
        EProcess(0.05, 0.95).load_state_dict(EProcess(0.05, 0.9).state_dict())
    with pytest.raises(InputError, match="no state of an EProcess"):
        EProcess(0.05, 0.9).load_state_dict({})


# --- Runs that are let go ------------------------------------------------------------------------


def test_runs_are_drawn_at_random_in_their_share_and_by_their_seed() -> None:
    drawn = {}
    for seed in (0, 1):
        monitor = RiskMonitor(0.05, share=0.05, seed=seed)
        drawn[seed] = [monitor.draw() for _ in range(10_000)]
        assert abs(sum(drawn[seed]) - 500) < 4 * math.sqrt(10_000 * 0.05 * 0.95)
        assert (monitor.num_runs, monitor.num_let_go) == (10_000, sum(drawn[seed]))
        again = RiskMonitor(0.05, share=0.05, seed=seed)
        assert [again.draw() for _ in range(200)] == drawn[seed][:200]
    both = sum(a and b for a, b in zip(drawn[0], drawn[1], strict=True))
    assert both < 60  # 25 if independent
    assert all(RiskMonitor(0.05, share=1.0).draw() for _ in range(3))


def test_a_resumed_monitor_is_the_uninterrupted_one() -> None:
    def work(monitor: RiskMonitor, runs: range) -> list[bool]:
        return [monitor.report(run % 3 / 2) for run in runs if monitor.draw()]

    whole, first, second = (RiskMonitor(0.2, share=0.3, bound=0.9, seed=5) for _ in range(3))
    alarms = work(whole, range(300))
    before = work(first, range(137))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert before + work(second, range(137, 300)) == alarms
    assert second.state_dict() == whole.state_dict()
    assert alarms[-1]
    assert "alarm after" in repr(second)
    assert second.test.mean == pytest.approx(0.5 * 0.9 / 0.9, abs=0.1)


def test_only_runs_that_were_let_go_are_reported() -> None:
    monitor = RiskMonitor(0.05, share=1.0, bound=2.0)
    monitor.draw()
    monitor.report(math.inf)  # it diverged
    assert monitor.test.mean == 2.0
    with pytest.raises(InputError, match="all 1 runs that were let go are reported"):
        monitor.report(0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "share must be in"),
        ({"share": 1.5}, "share must be in"),
        ({"bound": 0.01}, "bound must be above the level"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"confidence": 1.0}, "confidence must be above 0 and below 1"),
        ({"level": 0.0}, "level must be above 0"),
    ],
)
def test_impossible_monitors_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RiskMonitor(**{"level": 0.05, **settings})


def test_the_state_of_another_monitor_is_refused() -> None:
    state = RiskMonitor(0.05, seed=1).state_dict()
    with pytest.raises(InputError, match="state is of a monitor with seed 1, this one has 0"):
        RiskMonitor(0.05).load_state_dict(state)
    with pytest.raises(InputError, match="no state of a RiskMonitor"):
        RiskMonitor(0.05).load_state_dict({**state, "surplus": 1})
