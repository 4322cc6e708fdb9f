"""Rows that the adaptive layer computes, where there are few."""

from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn

from haltwise.nn import AdaptiveComputation, AdaptiveProcess, ItemStep, LayerStack, RecurrentCell
from haltwise.stop_rules import FixedBudget


def watched(dtype: torch.dtype, process: Any) -> tuple[AdaptiveComputation, list[int]]:
    """A layer, and the rows of every step that it takes from now on."""
    layer, rows = AdaptiveComputation(process).to(dtype), []
    taken = process.step

    def step(number: Any, state: dict[str, Tensor], active: Any = None) -> Any:
        rows.append(len(next(iter(state.values()))))
        return taken(number, state, active)

    process.step = step
    return layer, rows


def stack() -> LayerStack:
    torch.manual_seed(0)
    return LayerStack([nn.Linear(4, 4) for _ in range(5)], 4)


@pytest.mark.parametrize("make", [stack, lambda: RecurrentCell(nn.GRUCell(4 + 1, 4), 5)])
@pytest.mark.parametrize("num", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_are_computed_alone(make: Any, num: int, dtype: torch.dtype) -> None:
    """An image by itself costs what it costs, not what eight do."""
    layer, rows = watched(dtype, make())
    executed = layer.run(torch.randn(num, 4, dtype=dtype), 0.1, rule=FixedBudget(2))
    assert rows == [num] * 3
    assert (executed.num_row_steps, executed.sizes) == (3 * num, (num,))


@pytest.mark.parametrize("num", [1, 3, 8, 100])
def test_double_precision_keeps_the_bits_of_a_row_by_batches_of_eight(num: int) -> None:
    layer, rows = watched(DOUBLE, stack())
    inputs = torch.randn(num, 4, generator=seeded(), dtype=DOUBLE)
    executed = layer.run(inputs, 0.1, rule=FixedBudget(2))
    assert rows == [max(8, num)] * 3
    alone = layer.run(inputs[:1], 0.1, rule=FixedBudget(2))
    torch.testing.assert_close(alone.output[0], executed.output[0], rtol=1e-14, atol=1e-14)


class Counts(AdaptiveProcess):
    """Rows of a number each, which end when they have been counted down."""

    num_features = 1
    steps_alike = True

    def init(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"left": inputs}

    def step(
        self, step: int | Tensor, state: dict[str, Tensor], active: Tensor | None = None
    ) -> ItemStep:
        left = state["left"]
        return ItemStep(left, (0.5 - left).unsqueeze(1), {"left": left - 1})


@pytest.mark.parametrize("num", [2, 4, 7])
def test_few_rows_leave_as_many_do(num: int) -> None:
    layer, rows = watched(torch.float32, Counts(10))
    layer.head = AdaptiveComputation(Counts(10), width=0, price_input=False).head
    nn.init.constant_(layer.head.readout.weight, 100.0)
    executed = layer.run(torch.arange(num).float(), 0.1)
    assert executed.exits.tolist() == list(range(num))
    assert sum(rows) <= 1.25 * num * (num + 1) / 2
