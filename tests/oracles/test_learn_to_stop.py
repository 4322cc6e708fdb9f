"""When to stop a loop, learned from few runs: known answers, and what is refused or left out."""

import numpy as np
import pytest

from haltwise import DataWarning, InputError, RunMonitor
from haltwise.curves.curves import Curves, Floats
from haltwise.curves.levels import stops_below
from haltwise.curves.stopping import LearnedStop, learn_to_stop

PRICE = 0.01


def _losses(seed: int, num: int = 40) -> Floats:
    """Runs of 40 steps that fall to 0, the slowest in some 20 steps, the fastest in 2."""
    rng = np.random.default_rng(seed)
    noise = 0.003 * rng.standard_normal((num, 40))
    found: Floats = np.exp(-rng.uniform(0.05, 0.5, (num, 1)) * np.arange(40)) + noise
    return found


def _curves(losses: Floats) -> Curves:
    return Curves.from_matrix(losses, group=[f"group {i % 4}" for i in range(len(losses))])


@pytest.fixture(scope="module")
def learned() -> LearnedStop:
    return learn_to_stop(_curves(_losses(0)), PRICE)


def test_it_costs_little_more_than_the_oracle(learned: LearnedStop) -> None:
    losses = _losses(1, 200)
    bills = np.minimum.accumulate(losses, 1) + PRICE * np.arange(40)
    stops = stops_below(learned.rule.scores(_curves(losses)), np.array([learned.level]))
    own = bills[np.arange(200), np.minimum(stops[:, 0], 39)].mean()
    fixed, oracle = bills.mean(0).min(), bills.min(1).mean()
    assert (fixed - own) / (fixed - oracle) > 0.8
    # What it says that it saves is what it saves on other runs.
    assert bills[:, -1].mean() - own == pytest.approx(learned.saved, abs=4 * learned.standard_error)


def test_a_monitor_stops_where_the_rule_does(learned: LearnedStop) -> None:
    losses = _losses(2, 3)
    curves = _curves(losses)
    stops = stops_below(learned.rule.scores(curves), np.array([learned.level]))[:, 0]
    for row, stop in zip(losses, stops.tolist(), strict=True):
        monitor = RunMonitor(learned.rule, level=learned.level, budget=39, min_points=1)
        for value in row:
            monitor.update(value)
            if monitor.should_stop:
                break
        assert monitor.steps == min(stop + 1, 40)


def test_nothing_is_stopped_where_all_steps_pay() -> None:
    found = learn_to_stop(_curves(1 - 0.02 * np.arange(20) * np.ones((24, 1))), PRICE)
    assert (found.level, found.saved) == (-np.inf, 0.0)


def test_what_a_stop_returns_may_be_another_loss() -> None:
    """The loss seen falls for ever, and the one returned rises from the eighth step on."""
    losses = 1 - 0.02 * np.arange(30) + 0.001 * np.random.default_rng(0).random((24, 30))
    returned = np.tile(np.abs(np.arange(30) - 8.0), 24)
    found = learn_to_stop(_curves(losses), PRICE, returned=returned)
    assert found.saved > 5


def test_bad_input_is_one_sentence_and_nothing_is_lost_silently() -> None:
    losses = _losses(3, 22)
    with pytest.raises(InputError, match="price must be above 0, got 0"):
        learn_to_stop(_curves(losses), 0)
    with pytest.raises(InputError, match="19 runs have two points and a finite first loss"):
        learn_to_stop(_curves(losses[:19]), PRICE)
    with pytest.raises(InputError, match=r"one number for each of 880 points, got shape \[3\]"):
        learn_to_stop(_curves(losses), PRICE, returned=np.zeros(3))
    losses[0, 0] = np.inf
    with pytest.warns(DataWarning, match="1 of 22 runs are left out"):
        learn_to_stop(_curves(losses), PRICE)
