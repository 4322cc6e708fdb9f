"""When the guard of `LearnedOptimizer` acts, recomputed at each step from all losses seen."""

import math
from collections.abc import Callable
from typing import final

import numpy as np
import pytest

from haltwise.interfaces.torch_optim.guard import Guard, State

HORIZON, STEPS = 40, 70


@final
class Seen:
    """What is known of the losses since the start, or since going back to it.

    A loss counts as `counted` says, and `above` says how far it lies above the smoothed one before
    it, for the noise.
    """

    def __init__(self) -> None:
        self.first, self.lowest, self.lowest_of = 0.0, np.inf, 0
        self.counted: list[float] = []
        self.above: list[float] = []

    def smooth(self) -> float:
        """The mean of the losses, each weighing a fifth less than the next one."""
        weights = 0.8 ** np.arange(len(self.counted))[::-1]
        return float(weights @ np.array(self.counted) / weights.sum())

    def noise(self) -> float:
        """Twice the mean of what is above: of twenty losses, then of some twenty, smoothed."""
        found = float(np.mean([0.0, *self.above[:20]][1:] or [0.0]))
        for above in self.above[20:]:
            found = 0.95 * found + 0.05 * above
        return 2 * found

    def too_much(self) -> float:
        """How far above the lowest is no noise."""
        doubt = 3 * self.noise() / np.sqrt(1 - 0.8**self.lowest_of)
        return float(max(0.15 * max(self.first - self.lowest, 0.0), doubt, 1e-6 * abs(self.first)))

    def add(self, loss: float) -> None:
        """Take another loss in."""
        if not self.counted:
            self.first = loss
            self.counted.append(loss)
            return
        noise, known = self.noise(), len(self.counted) > 10
        deviation = loss - self.smooth()
        if known:
            deviation = min(deviation, 2 * self.too_much())
        above = max(deviation, 0.0)
        self.above.append(min(above, 2 * noise) if known and noise else above)
        self.counted.append(self.smooth() + deviation)

    def return_to_lowest(self) -> None:
        """Every loss so far counts as the lowest."""
        self.counted = [self.lowest] * len(self.counted)


def by_definition(losses: list[float]) -> list[tuple[bool, bool, str]]:
    """At each step: whether the parameters are kept, whether it goes back, why Adam takes over."""
    found = []
    adam, high, lowest_at, gained, seen = False, 0, 0, False, Seen()
    is_astray = False  # since it went back no loss was near the lowest

    def back(step: int) -> None:
        nonlocal lowest_at, seen, high, is_astray
        if gained:
            seen.return_to_lowest()
        else:  # it is the start that it goes back to, and all begins anew
            seen = Seen()
        lowest_at, high, is_astray = step, 0, gained

    for step, loss in enumerate(losses):
        is_astray = is_astray and loss - seen.lowest > seen.too_much()
        seen.add(loss)
        smooth, known = seen.smooth(), len(seen.counted) > 10
        high = high + 1 if loss - seen.first > 0.5 * abs(seen.first) else 0
        keeps = goes_back = False
        why = ""
        if smooth <= seen.lowest:
            seen.lowest, seen.lowest_of, lowest_at = smooth, len(seen.counted), step
            unit = abs(seen.first)
            little = min(0.1 * unit, 3 * seen.noise()) if known else 0.1 * unit
            gained |= seen.first - smooth > max(little, 1e-6 * unit)
            keeps = gained
        else:
            rises = known and smooth - seen.lowest > seen.too_much()
            rises |= high >= 3 and len(seen.counted) <= 13
            waits = not adam and step - lowest_at > HORIZON / 2
            if rises or waits:
                goes_back, why = True, "risen" if rises else "not fallen"
                gained &= not (rises and is_astray)  # another loss is to be lowered by now
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
def test_a_seventh_of_the_fall_is_too_much(jump: float, acts: bool) -> None:
    """Losses without noise fall by 3; then one stays higher."""
    state: State = {}
    for step in range(31):
        assert not Guard(state, step, 1000, 0.0).observe(10 - 0.1 * step).go_back
    risen = 10 - 3 + jump * 0.15 * (state["first"] - state["lowest"])
    risen += state["lowest"] - 7  # the smoothed loss lags behind
    backs = [Guard(state, step, 1000, 0.0).observe(risen).go_back for step in range(31, 131)]
    assert any(backs) is acts


NOISES: dict[str, Callable[[np.random.Generator], float]] = {
    "normal": lambda random: 1 + 0.3 * random.standard_normal(),
    "skewed": lambda random: math.exp(0.5 * random.standard_normal()),
    "heavy": lambda random: math.exp(random.standard_normal()),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("fall", [0.0, 0.5, 0.9])
def test_noise_is_not_taken_for_harm(noise: str, fall: float) -> None:
    """Losses as of small batches: it goes back a few times at most, and steps stay long enough."""
    backs, rates = [], []
    for seed in range(20):
        random, num = np.random.default_rng(seed), 0
        state: State = {}
        for step in range(1000):
            guard = Guard(state, step, 100, 0.0)
            level = 1 - fall + fall * math.exp(-step / 30)
            went_back = guard.observe(level * NOISES[noise](random)).go_back
            num += went_back
            if not guard.has_taken_over:
                guard.note_learned_step(1e-4)
            elif not went_back:
                guard.note_adam_step(has_loss=True)
        backs.append(num)
        rates.append(state["rate"])
    assert max(backs) <= 15, backs
    assert np.mean(backs) <= (8 if noise == "heavy" else 2), backs
    assert min(rates) >= 3e-4, rates


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("at", [12, 25, 60, 90])
def test_a_rise_is_noticed_among_noise(noise: float, at: int) -> None:
    """Losses that fall from 1 to .1 and rise by 2 at once."""
    for seed in range(20):
        random, backs = np.random.default_rng(seed), []
        state: State = {}
        for step in range(at + 25):
            level = 0.1 + 0.9 * math.exp(-step / 10) + 2 * (step >= at)
            loss = level * (1 + noise * random.standard_normal())
            backs.append(Guard(state, step, 1000, 0.0).observe(loss).go_back)
        assert not any(backs[:at])
        assert any(backs[at:]), (seed, backs)


def test_a_lucky_first_loss_does_not_undo_all_that_follows() -> None:
    """It lies below all others until half of them is gained."""
    random, backs = np.random.default_rng(0), []
    state: State = {}
    for step in range(600):
        loss = (1 - step / 1000) * (1 + 0.1 * random.standard_normal())
        backs.append(Guard(state, step, 100, 0.0).observe(loss if step else 0.6).go_back)
    assert sum(backs) <= 1
    assert state["gained"] == 1


@pytest.mark.parametrize(("left", "halved"), [(0.05, 0.5), (0.3, 2.0), (1.0, 2.0)])
def test_the_rate_falls_slowly_where_much_is_left(left: float, halved: float) -> None:
    """It has halved after half the horizon, or twice of it where more than a tenth is left."""
    state: State = {}
    for step in range(HORIZON):
        guard = Guard(state, step, HORIZON, 0.0)
        guard.observe(left + (1 - left) * math.exp(-step))
        guard.note_learned_step(1e-4)
    Guard(state, HORIZON, HORIZON, 0.0).observe(left)
    first = Guard(state, HORIZON, HORIZON, 0.0).rate
    for _ in range(int(halved * HORIZON)):
        guard = Guard(state, HORIZON, HORIZON, 0.0)
        guard.note_adam_step(has_loss=False)
    assert guard.rate == pytest.approx(first / 2)


@pytest.mark.parametrize("num_losses", [0, 5])
def test_where_no_loss_tells_of_a_gain_the_end_of_the_horizon_undoes_nothing(
    num_losses: int,
) -> None:
    """Steps may come without a loss, and the last one may; some that did not fall are known."""
    state: State = {}
    for step in range(HORIZON):
        guard = Guard(state, step, HORIZON, 0.0)
        assert guard.observe(1.0 if step < num_losses else None) == (False, False, "")
        guard.note_learned_step(1e-4)
    action = Guard(state, HORIZON, HORIZON, 0.0).observe(None)
    assert "trained for" in action.takes_over
    assert action.go_back is bool(num_losses)
    assert not action.remember


def steps_of_adam(losses: list[float], *, price: float) -> list[bool]:
    """Whether each step of Adam, at these losses, ends ten that did not earn their price."""
    state: State = {}
    asked = []
    for step, loss in enumerate(losses):
        guard = Guard(state, step, 0, price)
        goes_back = guard.observe(loss).go_back  # at the first: there is nothing that fell
        asked.append(not goes_back and guard.note_adam_step(has_loss=True))
    return asked


@pytest.mark.parametrize(("fall", "stops"), [(0.9, True), (1.1, False)])
def test_ten_steps_of_adam_must_earn_their_price_together(fall: float, stops: bool) -> None:
    """The smoothed loss falls by as much a step as the loss does, once it has settled."""
    losses = [1000.0 - fall * 0.2 * step for step in range(61)]
    asked = steps_of_adam(losses, price=0.2)
    due = [step for step in range(len(asked)) if step > 20 and step % 10 == 1]
    assert [step for step, stop in enumerate(asked) if stop and step > 20] == due * stops


@pytest.mark.parametrize("taken", [0, 1])
def test_three_steps_in_a_row_that_are_not_finite_are_a_divergence(taken: int) -> None:
    """A finite one between begins the count anew; at the start there is nowhere to go back to."""
    state: State = {}
    for step in range(taken):
        Guard(state, step, HORIZON, 0.0).observe(1.0)
        Guard(state, step, HORIZON, 0.0).note_learned_step(1e-4)
    guard = Guard(state, taken, HORIZON, 0.0)
    assert [guard.fail().takes_over for _ in range(2)] == ["", ""]
    guard.note_learned_step(1e-4)
    assert [guard.fail().takes_over for _ in range(2)] == ["", ""]
    action = guard.fail()
    assert bool(action.takes_over) is bool(taken)
    assert action.go_back is bool(taken)
    assert guard.has_taken_over is bool(taken)
