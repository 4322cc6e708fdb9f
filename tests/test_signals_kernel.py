"""The compiled signals and features of an optimization against their twins in plain PyTorch."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from draws import DOUBLE, randn
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import needs_library
from torch import Tensor

from haltwise import InputError
from haltwise.halting.features import OptimizationFeatures
from haltwise.processes.signals import init_signals, measure_sequence, measure_signals

DTYPES = (torch.float32, DOUBLE)
TOLERANCE = {torch.float32: 2e-6, DOUBLE: 1e-12}
FEATURES = OptimizationFeatures()
Result = TypeVar("Result")
HOSTILE = (
    *(0.0, -0.0, float("nan"), float("inf"), -float("inf")),
    *(1e-40, -1e-38, 1e-30, 1e-9, 1e9, -1e15, 1e20, -1e30, 3e38),
)

pytestmark = needs_library


def spoil(value: Tensor, places: list[tuple[int, float]]) -> Tensor:
    flat = value.flatten().clone()
    for place, number in places:
        flat[place % len(flat)] = number
    return flat.view_as(value)


def assert_same(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def in_two_ways(function: Callable[..., Result], *arguments: Any) -> tuple[Result, Result]:
    """What the kernel makes of the arguments, and PyTorch."""
    found = function(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALTWISE_KERNEL", "plain")
        return found, function(*arguments)


spoiled = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(HOSTILE)), max_size=6)
sizes = st.tuples(
    st.sampled_from((0, 1, 3, 70)), st.integers(1, 5), st.sampled_from((1, 2, 9, 64, 75))
)
scales = st.sampled_from((1e-25, 1e-12, 1e-3, 1.0, 1e4, 1e18))


def run_of(
    size: tuple[int, int, int], scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Losses, gradients, updates, and the memory of the steps before."""
    rows, steps, dim = size
    values = [
        scale * randn(*shape, seed=i)
        for i, shape in enumerate(
            [(rows, steps), (rows, steps, dim), (rows, steps, dim), (rows, dim), (rows, dim)]
        )
    ]
    losses, grads, updates, grad, update = (value.to(dtype) for value in values)
    return losses, grads, updates, {"grad": grad, "update": update}


@given(size=sizes, scale=scales, first=st.integers(0, 9), dtype=st.sampled_from(DTYPES))
def test_signals_are_those_of_the_twin(
    size: tuple[int, int, int], scale: float, first: int, dtype: torch.dtype
) -> None:
    found, expected = in_two_ways(measure_sequence, first, *run_of(size, scale, dtype))
    assert_same(found[0], expected[0])
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value)


@given(where=st.integers(0, 2), places=spoiled, first=st.integers(0, 1))
def test_signals_of_numbers_at_the_edge_are_those_of_the_twin(
    where: int, places: list[tuple[int, float]], first: int
) -> None:
    *run, memory = run_of((3, 4, 2), 1.0, torch.float32)
    run[where] = spoil(run[where], places)
    found, expected = in_two_ways(measure_sequence, first, *run, memory)
    assert_same(found[0], expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("instruction_set")
def test_every_instruction_set_agrees(dtype: torch.dtype) -> None:
    for size in ((70, 3, 2), (2, 5, 77)):
        run = run_of(size, 1.0, dtype)
        (signals, _), expected = in_two_ways(measure_sequence, 0, *run)
        assert_same(signals, expected[0])
        price = 0.1 + randn(size[0], dtype=dtype).abs()
        memory = FEATURES.init(size[0], signals)
        found, expected = in_two_ways(FEATURES.extract, signals, price, memory)
        assert_same(found[0], expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_a_sequence_of_one(dtype: torch.dtype) -> None:
    losses, grads, updates, memory = run_of((70, 3, 9), 1.0, dtype)
    whole, _ = measure_sequence(2, losses, grads, updates, memory)
    for step in range(3):
        now = losses[:, step], grads[:, step], updates[:, step]
        signals, memory = measure_signals(2 + step, *now, memory)
        assert torch.equal(signals, whole[:, step])


@given(
    size=sizes,
    scale=scales,
    price=st.sampled_from((1e-6, 0.05, 1e3)),
    dtype=st.sampled_from(DTYPES),
)
def test_features_are_those_of_the_twin(
    size: tuple[int, int, int], scale: float, price: float, dtype: torch.dtype
) -> None:
    signals, _ = measure_sequence(0, *run_of(size, scale, dtype))
    prices = price * (1 + randn(size[0], dtype=dtype).abs())
    memory = FEATURES.init(size[0], signals)
    for _ in range(2):  # from the beginning, and on
        found, expected = in_two_ways(FEATURES.extract, signals, prices, memory)
        assert_same(found[0], expected[0])
        memory = found[1]
        for name, value in expected[1].items():
            assert_same(memory[name], value)


@given(places=spoiled, price=st.sampled_from((*HOSTILE, -1.0)))
def test_features_of_numbers_at_the_edge_are_those_of_the_twin(
    places: list[tuple[int, float]], price: float
) -> None:
    signals, _ = measure_sequence(0, *run_of((3, 4, 2), 1.0, torch.float32))
    signals[..., 1:] = spoil(signals[..., 1:], places)
    prices = torch.tensor([0.1, price, 2.0])
    found, expected = in_two_ways(FEATURES.extract, signals, prices, FEATURES.init(3, signals))
    assert_same(found[0], expected[0])
    for name, value in expected[1].items():
        assert_same(found[1][name], value)


@pytest.mark.parametrize("number", HOSTILE)
def test_features_behind_a_loss_at_the_edge_are_those_of_the_twin(number: float) -> None:
    losses, grads, updates, before = run_of((3, 5, 2), 1.0, torch.float32)
    losses[1, 2] = number
    signals, _ = measure_sequence(0, losses, grads, updates, before)
    memory = FEATURES.init(3, signals)
    found, expected = in_two_ways(FEATURES.extract, signals, torch.ones(3), memory)
    assert_same(found[0], expected[0])
    assert_same(found[1]["lowest"], expected[1]["lowest"])


@pytest.mark.usefixtures("one_thread")
def test_the_number_of_threads_changes_no_bit() -> None:
    run, price = run_of((1700, 6, 3), 1.0, torch.float32), torch.full((1700,), 0.1)

    def both() -> tuple[Tensor, Tensor]:
        signals, _ = measure_sequence(0, *run)
        return signals, FEATURES.extract(signals, price, FEATURES.init(1700, signals))[0]

    alone = both()
    torch.set_num_threads(3)
    assert all(map(torch.equal, alone, both()))


def test_what_does_not_fit_is_refused() -> None:
    losses, grads, updates, memory = run_of((3, 4, 2), 1.0, DOUBLE)
    with pytest.raises(InputError, match="the updates has the shape"):
        measure_sequence(0, losses, grads, updates[..., :1], memory)
    with pytest.raises(InputError, match="the last gradient has the shape"):
        measure_signals(0, losses[:, 0], grads[:, 0], updates[:, 0], init_signals(grads[:2, 0]))
    signals, _ = measure_sequence(0, losses, grads, updates, memory)
    with pytest.raises(InputError, match="the price has the shape"):
        FEATURES.extract(signals, torch.ones(2, dtype=DOUBLE), FEATURES.init(3, signals))
    with pytest.raises(InputError, match="the signals has the shape"):
        FEATURES.extract(signals[..., 1:], losses[:, 0], FEATURES.init(3, signals))
