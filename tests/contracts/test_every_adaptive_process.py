"""What every adaptive process must satisfy, with every halting method and coupling."""

from collections.abc import Callable

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn

import haltwise.nn
from haltwise.nn import AdaptiveProcess, RecurrentCell, RepeatedBlock, TransformerBlock
from haltwise.testing import check_adaptive_process


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(), dtype=DOUBLE)


CASES: dict[str, tuple[Callable[[], AdaptiveProcess], Tensor]] = {
    "tanh cell": (lambda: RecurrentCell(nn.RNNCell(3 + 1, 6), 4), inputs(4, 3)),
    "LSTM cell": (lambda: RecurrentCell(nn.LSTMCell(3 + 1, 5), 3), inputs(4, 3)),
    "looped transformer": (
        lambda: RepeatedBlock(TransformerBlock(8, 2), 8, 3),
        inputs(4, 5, 8),
    ),
    "universal transformer": (
        lambda: RepeatedBlock(TransformerBlock(8, 2, causal=True), 8, 3, per="token"),
        inputs(4, 5, 8),
    ),
    "block that is not told its inputs": (
        lambda: RepeatedBlock(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), 4, 3, inject=False),
        inputs(4, 2, 4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_process_keeps_the_contract(name: str) -> None:
    make, given = CASES[name]
    torch.manual_seed(0)
    check_adaptive_process(make().double(), given)


def test_no_process_is_left_out() -> None:
    public = [getattr(haltwise.nn, name) for name in haltwise.nn.__all__]
    kinds = {
        kind
        for kind in public
        if isinstance(kind, type)
        and issubclass(kind, AdaptiveProcess)
        and kind is not AdaptiveProcess
    }
    assert kinds == {type(make()) for make, _ in CASES.values()}
