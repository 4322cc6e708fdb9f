"""What every adaptive process must satisfy, with every halting method and coupling."""

from collections.abc import Callable, Mapping

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn

import haltwise.nn
from haltwise.nn import (
    AdaptiveProcess,
    LayerStack,
    ObjectGenerator,
    RecurrentCell,
    RepeatedBlock,
    ResidualStage,
    TransformerBlock,
)
from haltwise.testing import check_adaptive_process


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(), dtype=DOUBLE)


def padded(tokens: Tensor) -> Mapping[str, Tensor]:
    """The same rows with two tokens, one token and none at the end that are padding."""
    places = torch.arange(tokens.shape[1])
    number = tokens.shape[1] - torch.arange(len(tokens)).flip(0) % 3
    return {"tokens": tokens, "padding": places >= number.unsqueeze(1)}


CASES: dict[str, tuple[Callable[[], AdaptiveProcess], Tensor | Mapping[str, Tensor]]] = {
    "tanh cell": (lambda: RecurrentCell(nn.RNNCell(3 + 1, 6), 4), inputs(4, 3)),
    "LSTM cell": (lambda: RecurrentCell(nn.LSTMCell(3 + 1, 5), 3), inputs(4, 3)),
    "looped transformer": (
        lambda: RepeatedBlock(TransformerBlock(8, 2), 8, 3),
        inputs(4, 5, 8),
    ),
    "torch's encoder layer, whose units have kinks": (
        lambda: RepeatedBlock(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 8, 3
        ),
        inputs(4, 5, 8),
    ),
    "universal transformer": (
        lambda: RepeatedBlock(TransformerBlock(8, 2, causal=True), 8, 3, per="token"),
        inputs(4, 5, 8),
    ),
    "universal transformer with shared keys": (
        lambda: RepeatedBlock(TransformerBlock(8, 2), 8, 3, per="token", keys="shared"),
        inputs(4, 5, 8),
    ),
    "looped transformer, padded": (
        lambda: RepeatedBlock(TransformerBlock(8, 2, causal=True), 8, 3),
        padded(inputs(4, 5, 8)),
    ),
    "universal transformer, padded": (
        lambda: RepeatedBlock(TransformerBlock(8, 2), 8, 3, per="token"),
        padded(inputs(4, 5, 8)),
    ),
    "block that is not told its inputs": (
        lambda: RepeatedBlock(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), 4, 3, inject=False),
        inputs(4, 2, 4),
    ),
    "stack of layers": (
        lambda: LayerStack(
            [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)],
            2,
            heads=[nn.Linear(4, 2) for _ in range(3)],
            costs=[1, 1.5, 4],
        ),
        inputs(4, 4),
    ),
    "stack of layers, sequences": (
        lambda: LayerStack([TransformerBlock(4, 2) for _ in range(3)], 4),
        inputs(4, 3, 4),
    ),
    "stack of layers, tokens with copied keys": (
        lambda: LayerStack([TransformerBlock(8, 2) for _ in range(3)], 8, per="token"),
        inputs(4, 5, 8),
    ),
    "stack of layers, tokens with shared keys": (
        lambda: LayerStack(
            [TransformerBlock(8, 2, causal=True) for _ in range(3)], 8, per="token", keys="shared"
        ),
        inputs(4, 5, 8),
    ),
    "stack of layers, sequences that are padded": (
        lambda: LayerStack([TransformerBlock(4, 2) for _ in range(3)], 4),
        padded(inputs(4, 3, 4)),
    ),
    "stack of layers, tokens that are padded": (
        lambda: LayerStack(
            [TransformerBlock(8, 2, causal=True) for _ in range(3)],
            2,
            heads=[nn.Linear(8, 2) for _ in range(3)],
            per="token",
            keys="shared",
        ),
        padded(inputs(4, 5, 8)),
    ),
    "residual stage of images": (
        lambda: ResidualStage([nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)], 2),
        inputs(4, 2, 4, 4),
    ),
    "residual stage of positions": (
        lambda: ResidualStage([nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)], 2, per="position"),
        inputs(4, 2, 4, 4),
    ),
    "generator of objects": (
        lambda: ObjectGenerator(8, 4, max_objects=3, hidden=6, code=2).eval(),
        inputs(4, 8, 8).sigmoid(),
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
