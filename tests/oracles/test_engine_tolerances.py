"""When a price or a tolerance stops an engine, on single steps that are written by hand."""

import pytest
import torch
from draws import DOUBLE
from torch import Tensor

from haltwise.engines import Memory, Point, Proposal
from haltwise.engines.stops import EngineStop, PriceStop, ToleranceStop

FTOL = 1e-3


def at(loss: float, grad: float = -1.0, params: float = 0.0) -> Point:
    """One problem of one parameter."""
    return Point(number(params).unsqueeze(1), number(loss), number(grad).unsqueeze(1))


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=DOUBLE)


def proposal(gain: float, move: float = 1.0, *, known: bool = False) -> Proposal:
    return Proposal(number(move).unsqueeze(1), number(-1.0), number(gain), torch.tensor([known]))


def reason(stop: EngineStop, point: Point, next_step: Proposal, memory: Memory) -> int:
    return int(stop.decide(point, next_step, memory)[0].item())


def after(stop: EngineStop, before: Point, step: Proposal, end: Point) -> Memory:
    """The memory after one step from the beginning."""
    taken = torch.tensor([True])
    memory = stop.decide(before, step, stop.init(before))[1]
    return stop.learn(before, step, end, taken, memory)


@pytest.mark.parametrize(("slope", "stops"), [(-0.85, True), (-0.95, False)])
def test_a_step_that_ends_as_steeply_as_it_began_is_too_short_to_tell(
    slope: float, stops: bool
) -> None:
    """Wolfe's second condition with the .9 of SciPy's line searches."""
    stop, step = ToleranceStop(ftol=FTOL), proposal(1.0)
    end = at(1 - FTOL / 2, slope)
    assert reason(stop, end, step, after(stop, at(1.0), step, end)) == (1 if stops else -1)


@pytest.mark.parametrize(("fall", "stops"), [(0.9, True), (1.1, False)])
def test_ftol_is_a_share_of_the_larger_loss_or_of_one(fall: float, stops: bool) -> None:
    for loss in (0.2, 1.0, 50.0):
        stop, step = ToleranceStop(ftol=FTOL), proposal(1.0)
        end = at(loss - fall * FTOL * max(loss, 1.0), 0.0)
        assert reason(stop, end, step, after(stop, at(loss), step, end)) == (1 if stops else -1)


@pytest.mark.parametrize(("share", "stops"), [(0.2, False), (0.3, True)])
def test_least_squares_stop_where_the_step_went_as_forecast(share: float, stops: bool) -> None:
    """A quarter of the forecast, as `scipy.optimize.least_squares` asks for."""
    stop, fall = ToleranceStop(ftol=FTOL, least_squares=True), FTOL / 2
    step, end = proposal(fall / share), at(1 - fall)
    assert reason(stop, end, step, after(stop, at(1.0), step, end)) == (1 if stops else -1)


@pytest.mark.parametrize(("length", "stops"), [(0.9, True), (1.1, False)])
def test_xtol_is_a_share_of_the_parameters_and_itself(length: float, stops: bool) -> None:
    stop, xtol = ToleranceStop(xtol=1e-2), 1e-2
    for params in (0.0, 5.0):
        step = proposal(1.0, length * xtol * (xtol + params))
        begin = at(1.0, params=params)
        memory = after(stop, begin, step, at(0.5, params=params))
        assert reason(stop, at(0.5), step, memory) == (2 if stops else -1)


def test_gtol_is_the_largest_coordinate() -> None:
    stop = ToleranceStop(gtol=0.1)
    for size, expected in ((0.1, 0), (0.11, -1)):
        point = at(1.0, size)
        assert reason(stop, point, proposal(1.0), stop.init(point)) == expected


def waits(stop: PriceStop, first: Point, later: Point, gain: float) -> int:
    """After how many steps that earn nothing it stops; 0 if it has not after 20."""
    memory, step = stop.init(first), proposal(gain)
    for count in range(1, 21):
        memory = stop.learn(later, step, later, torch.tensor([True]), memory)
        found, memory = stop.decide(later, step, memory)
        if found.item() >= 0:
            return count
    return 0


@pytest.mark.parametrize(
    ("norm", "gain", "count"),
    [
        (0.009, 0.09, 3),  # flat, and no more is forecast: as good as solved
        (0.009, 0.11, 10),
        (0.011, 0.09, 10),
    ],
)
def test_steps_that_do_not_earn_their_price_are_waited_for(
    norm: float, gain: float, count: int
) -> None:
    stop = PriceStop(number(0.1))
    assert waits(stop, at(1.0, 1.0), at(1.0, norm), gain) == count


@pytest.mark.parametrize(("prices", "fails"), [(2.9, False), (3.1, True)])
def test_a_stop_that_leaves_three_prices_is_no_success(prices: float, fails: bool) -> None:
    stop, price = PriceStop(number(0.1)), 0.1
    point, step = at(1.0, 1.0), proposal(prices * price)
    memory = stop.init(point)
    for _ in range(10):
        memory = stop.learn(point, step, point, torch.tensor([True]), memory)
    assert (reason(stop, point, step, memory) in stop.failures) is fails


def test_what_the_curvature_at_the_point_forecasts_is_believed_at_once() -> None:
    stop, point = PriceStop(number(0.1)), at(1.0, 1.0)
    for gain, known, expected in ((0.1, True, 1), (0.11, True, -1), (0.1, False, -1)):
        assert reason(stop, point, proposal(gain, known=known), stop.init(point)) == expected


def stalls(
    stop: ToleranceStop, first: Point, later: Point, gain: float, promised: float
) -> tuple[int, int]:
    """After how many steps that fail it stops, 0 if it has not after 70, and why."""
    memory, step = stop.init(first), proposal(promised)
    for count in range(1, 71):
        memory = stop.learn(later, step, later, torch.tensor([False]), memory)
        found = reason(stop, later, proposal(gain), memory)
        if found >= 0:
            return count, found
    return 0, -1


@pytest.mark.parametrize(
    ("norm", "gain", "promised", "expected"),
    [
        (0.009, 1e-17, 1e-3, (6, 3)),  # flat beside where it began: as good as solved
        (0.5, 1e-17, 1e-9, (6, 3)),  # steep, but nothing was ever promised
        (0.5, 1e-17, 1e-3, (6, 7)),  # steep, and much was promised: is the gradient right?
        (0.5, 1e-3, 1e-3, (60, 4)),  # more is forecast of the next
    ],
)
def test_steps_that_lower_nothing_are_waited_for_and_told_apart(
    norm: float, gain: float, promised: float, expected: tuple[int, int]
) -> None:
    found = stalls(ToleranceStop(gtol=1e-9), at(1.0, 1.0), at(1.0, norm), gain, promised)
    assert found == expected
    assert (found[1] in ToleranceStop().failures) is (expected[1] != 3)


def test_of_rules_that_may_climb_nothing_is_concluded_from_steps_that_lower_nothing() -> None:
    rule = ToleranceStop(gtol=1e-9, searches=False)
    assert stalls(rule, at(1.0, 1.0), at(1.0, 0.5), 0.0, 1e-3) == (0, -1)


def test_a_step_that_lowers_the_loss_begins_the_wait_anew() -> None:
    stop, taken = ToleranceStop(gtol=1e-9), torch.tensor([True])
    point, step = at(1.0, 1.0), proposal(1e-3)
    memory = stop.init(point)
    for _ in range(5):
        memory = stop.learn(point, step, point, ~taken, memory)
    memory = stop.learn(point, step, at(0.5, 1.0), taken, memory)
    for _ in range(5):
        memory = stop.learn(at(0.5, 1.0), proposal(1e-17), at(0.5, 1.0), ~taken, memory)
        assert reason(stop, at(0.5, 1.0), proposal(1e-17), memory) == -1
    memory = stop.learn(at(0.5, 1.0), proposal(1e-17), at(0.5, 1.0), ~taken, memory)
    assert reason(stop, at(0.5, 1.0), proposal(1e-17), memory) == 3


def test_what_another_tolerance_has_met_stays_the_reason() -> None:
    """A loss that stalls is one that met `gtol`, where both are so."""
    stop = ToleranceStop(gtol=0.5)
    assert stalls(stop, at(1.0, 1.0), at(1.0, 0.4), 1e-17, 1e-3) == (1, 0)


@pytest.mark.parametrize(
    ("curvature", "above", "fails"),
    [
        (0.45, 0.0, False),  # by the best step 1/2 .5^2 / .45 < 3 prices are left
        (0.40, 0.0, True),
        (-0.45, 0.0, True),  # no step is known to be the best
        (0.45, 0.09, False),  # a price above the lowest loss seen: as good as there
        (0.45, 0.11, True),
    ],
)
def test_what_is_left_to_a_rule_is_told_by_the_curvature_along_its_last_step(
    curvature: float, above: float, fails: bool
) -> None:
    """Forecasts of rules may promise anything: their steps may be too short, and climb."""
    stop, taken = PriceStop(number(0.1), searches=False), torch.tensor([True])
    first, lowest, move = at(1.0, 1.0), at(0.95, 0.5), 0.7
    memory = stop.learn(first, proposal(0.0), lowest, taken, stop.init(first))
    before = at(0.95 + above, 0.5)
    after = at(0.95 + above, 0.5 + curvature * move)
    for _ in range(10):
        memory = stop.learn(before, proposal(0.0, move), after, taken, memory)
    found = reason(stop, after, proposal(0.0, move), memory)
    assert found == (2 if fails else 0)
    assert (found in stop.failures) is fails
