"""When the guard of `LearnedOptimizer` acts, recomputed at each step from all losses seen."""

from typing import NamedTuple

import numpy as np
import pytest

from haltwise.interfaces.torch_optim.guard import Guard, State

HORIZON, STEPS = 40, 70


class Seen(NamedTuple):
    """The losses of a run, and where it began anew: after how many, from which level and noise."""

    losses: list[float]
    begun: int = 0
    level: float = 0.0
    noise: float = 0.0

    def smooth(self, num: int) -> float:
        """The mean of the first `num` losses, each weighing a fifth less than the next one."""
        weights = 0.8 ** np.arange(num)[::-1]
        own = np.array(self.losses[:num])
        own[: self.begun] = self.level
        return float(weights @ own / weights.sum())

    def mean_deviation(self, num: int) -> float:
        """The mean distance of a loss from the smoothed loss before it, smoothed alike from 0."""
        found = self.noise
        for place in range(max(self.begun, 1), num):
            found += 0.2 * (abs(self.losses[place] - self.smooth(place)) - found)
        return found


def by_definition(losses: list[float]) -> list[tuple[bool, bool, str]]:
    """At each step: whether the parameters are kept, whether it goes back, why Adam takes over."""
    found = []
    first, adam, high, begun = losses[0], False, 0, 0
    lowest, lowest_at, noise_there, most, gained = np.inf, 0, 0.0, 0.0, False
    seen = Seen(losses)

    def back(step: int) -> None:
        nonlocal lowest, lowest_at, begun, most, seen, high
        if not gained:  # it is the start that it goes back to
            lowest, most = first, noise_there
        seen = Seen(losses, step + 1, lowest, noise_there)
        lowest_at = begun = step
        high = 0

    for step, loss in enumerate(losses):
        smooth, noise = seen.smooth(step + 1), seen.mean_deviation(step + 1)
        most = max(most, noise)
        high = high + 1 if loss - first > 0.5 * abs(first) else 0
        keeps = goes_back = False
        why = ""
        if smooth <= lowest:
            lowest, lowest_at, noise_there = smooth, step, noise
            gained |= first - smooth > max(min(0.1 * abs(first), most), 1e-6 * abs(first))
            keeps = gained
        else:
            fall = max(first - lowest, 0.0)
            if step - begun < 10:
                rises = high >= 3
            else:
                now = seen.mean_deviation(step) if fall < 0.1 * abs(first) else 0.0
                noise = max(noise_there, now)
                rises = smooth - lowest > max(0.15 * fall, 3 * noise, 1e-6 * abs(first))
            waits = not adam and step - lowest_at > HORIZON / 2
            if rises or waits:
                goes_back, why = True, "risen" if rises else "not fallen"
                back(step)
        if not adam and step >= HORIZON:
            why = "trained for"
            if not gained and not goes_back:
                back(step)
                keeps, goes_back = False, True
        found.append((keeps, goes_back, "" if adam else why))
        adam |= bool(why)
    return found


def runs() -> list[list[float]]:
    """Losses that fall, stay, rise, jump and grow noisy, at several levels and of both signs."""
    random = np.random.default_rng(0)
    found = []
    for number in range(200):
        time = np.arange(STEPS)
        fall = random.choice([0.0, 0.05, 0.5, 3.0])
        loss = 1 + fall * np.exp(-time / random.uniform(2, 30))
        loss += random.choice([1e-3, 0.01, 0.1, 0.5]) * random.standard_normal(STEPS)
        if number % 2:
            loss[random.integers(1, STEPS) :] += random.choice([0.02, 0.1, 0.3, 2.0])
        if number % 3 == 0:
            loss += random.choice([1e-3, 5e-3, 0.05]) * time
        found.append((loss * random.choice([1.0, -1.0, 100.0])).tolist())
    return found


def test_it_acts_where_its_definition_says() -> None:
    kinds: dict[str, int] = {}
    for losses in runs():
        state: State = {}
        for step, (loss, expected) in enumerate(zip(losses, by_definition(losses), strict=True)):
            action = Guard(state, step, HORIZON, 0.0).observe(loss)
            assert (action.remember, action.go_back) == expected[:2], (losses, step)
            assert expected[2] in action.takes_over, (losses, step)
            assert bool(expected[2]) == bool(action.takes_over), (losses, step)
            kinds[expected[2]] = kinds.get(expected[2], 0) + 1
    assert min(kinds[kind] for kind in ("risen", "not fallen", "trained for")) >= 20


@pytest.mark.parametrize("loss", [0.0, 1.0, -0.3, 1e-5, 2.302585, 7e9])
def test_a_loss_that_never_changes_neither_gains_nor_rises(loss: float) -> None:
    """As that of a network whose units have all died; its mean is known but for rounding."""
    for scale in np.linspace(1, 2, 20):
        state: State = {}
        actions = [
            Guard(state, step, HORIZON, 0.0).observe(float(loss * scale)) for step in range(STEPS)
        ]
        assert not any(action.remember for action in actions)
        (why,) = (action.takes_over for action in actions if action.takes_over)
        assert "risen" not in why
        assert sum(action.go_back for action in actions) == 1


@pytest.mark.parametrize(("jump", "acts"), [(0.9, False), (1.1, True)])
def test_three_deviations_are_no_noise(jump: float, acts: bool) -> None:
    """Losses that alternate by 1 around a fall of 3 show their noise; then one stays higher."""
    losses = [10 - 0.1 * step + (step % 2) for step in range(30)]
    state: State = {}
    for step, loss in enumerate(losses):
        assert not Guard(state, step, 1000, 0.0).observe(loss).go_back
    limit = max(0.15 * (state["first"] - state["lowest"]), 3 * state["noise_there"])
    for step in range(30, 130):
        rises = Guard(state, step, 1000, 0.0).observe(state["lowest"] + jump * limit).go_back
        if rises or not acts:
            break
    assert rises is acts
