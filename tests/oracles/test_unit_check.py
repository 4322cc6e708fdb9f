"""How units are recognised by the first two steps, on signals that are written by hand."""

import math

import pytest
import torch
from draws import DOUBLE
from torch import Tensor

from haltwise.interfaces.guard import UnitCheck
from haltwise.models.scales import Likeness, Scales, UsualRange
from haltwise.processes import StepObservation
from haltwise.processes.signals import SIGNALS

USUAL = UsualRange(-1.0, 0.0, 1.0)
SCALES = Scales(USUAL, USUAL, USUAL, Likeness((0.0,), ((1.0,),), 1.0), 5)
FAR = 100.0  # as far as prices allow


def signals(num: int, **logs: float) -> Tensor:
    """Those of problems that are as usual but for what is given; everything else is 0."""
    row = torch.zeros(num, len(SIGNALS), dtype=DOUBLE)
    row[:, SIGNALS.index("most_gain")] = 1.0
    for name, value in logs.items():
        row[:, SIGNALS.index(name)] = value
    return row


def check(num: int, *steps: Tensor, losses: tuple[float, ...] = (1.0, 0.5)) -> UnitCheck:
    """A check of problems that have shown these signals and losses."""
    zeros = torch.zeros(num, dtype=DOUBLE)
    found = UnitCheck(SCALES, zeros, zeros, zeros, FAR, judges_gradients=True)
    for step, (seen, loss) in enumerate(zip(steps, losses, strict=False)):
        observation = StepObservation(step, torch.full((num,), loss, dtype=DOUBLE), signals=seen)
        found(torch.arange(num), observation)
    return found


@pytest.mark.parametrize("num", [1, 50])
def test_what_is_usual_is_left_alone(num: int) -> None:
    found = check(num, signals(num), signals(num))
    assert not found.wrong.any()
    assert not found.scale.any()
    assert not found.loss_scale.any()


@pytest.mark.parametrize("sign", [-1, 1])
def test_many_problems_are_judged_by_their_median(sign: int) -> None:
    """A first step more than e times too long or short for most; a single one may be stray."""
    for length, moves in ((0.9, False), (1.1, True)):
        found = check(50, signals(50, log_update=sign * length), signals(50))
        assert bool(found.wrong.all()) is moves
        assert found.scale.tolist() == [-sign * length * moves] * 50
    stray = signals(50)
    stray[0, SIGNALS.index("log_update")] = 8.0 * sign
    assert not check(50, stray, signals(50)).wrong.any()


@pytest.mark.parametrize("sign", [-1, 1])
def test_one_problem_is_judged_by_the_range_and_half_a_factor_of_e(sign: int) -> None:
    for length, moves in ((1.4, False), (1.6, True)):
        found = check(1, signals(1, log_update=sign * length), signals(1))
        assert found.wrong.item() is moves
        assert found.scale.item() == -sign * length * moves


@pytest.mark.parametrize("sign", [-1, 1])
def test_what_a_step_gains_may_differ_by_a_factor_of_thirty(sign: int) -> None:
    for num, gain, moves in ((50, 3.3, False), (50, 3.5, True), (1, 2.6, False), (1, 2.8, True)):
        after = signals(num, most_gain=math.exp(sign * gain))
        found = check(num, signals(num), after)
        assert bool(found.wrong.all()) is moves
        assert found.loss_scale.tolist() == pytest.approx([-sign * gain * moves] * num)
        assert not found.scale.any()


def test_where_most_first_steps_find_no_curvature_they_were_ten_times_too_long() -> None:
    flat = signals(9, log_curvature=math.log(1e-8))
    found = check(9, signals(9), flat, losses=(1.0, 2.0))
    assert found.wrong.all()
    assert found.scale.tolist() == pytest.approx([-math.log(10)] * 9)
    flat[:5] = signals(5)  # so do only four of nine
    assert not check(9, signals(9), flat, losses=(1.0, 2.0)).wrong.any()
    falls = check(9, signals(9), signals(9, log_curvature=math.log(1e-8)), losses=(1.0, 0.5))
    assert not falls.wrong.any()


def test_a_first_gradient_far_below_the_usual_ones_says_so() -> None:
    """One of a 400th is as if parameters counted as many times as much; they are moved at once."""
    found = check(50, signals(50, log_grad=-6.0))
    assert found.is_small.all()
    assert found.scale.tolist() == [0.0] * 50  # too short steps tell the scale themselves
    found = check(50, signals(50, log_grad=6.0))
    assert not found.is_small.any()
    assert found.scale.tolist() == [-6.0] * 50
    assert found.wrong.all()
