"""Adaptive layers that are exported with `torch.export`, for batches of any size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import seeded
from torch import Tensor, nn

from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveProcess,
    AdaptiveRNN,
    LayerStack,
    ObjectGenerator,
    RecurrentCell,
    RepeatedBlock,
    ResidualStage,
    TransformerBlock,
    VariableComputationCell,
)


def linear(*sizes: int) -> list[nn.Module]:
    return [nn.Linear(4, size) for size in sizes]


CASES: dict[str, tuple[Callable[[], AdaptiveProcess], tuple[int, ...]]] = {
    "layers": (lambda: LayerStack(linear(4, 4, 4), 2, heads=linear(2, 2, 2)), (4,)),
    "cell": (lambda: RecurrentCell(nn.LSTMCell(4 + 1, 3), 3), (4,)),
    "tokens": (lambda: RepeatedBlock(TransformerBlock(4, 2), 4, 3, per="token"), (5, 4)),
    "objects": (lambda: ObjectGenerator(6, 3, max_objects=2, hidden=4, code=2).eval(), (6, 6)),
    "images": (lambda: ResidualStage([nn.Conv2d(2, 2, 1) for _ in range(3)], 2), (2, 3, 3)),
}


class Exits(nn.Module):
    def __init__(self, layer: AdaptiveComputation) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pondered = self.layer(inputs, 0.1)
        return pondered.outputs, pondered.log_prob, pondered.exits


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "stick-breaking") for name in CASES), ("layers", "graves"), ("layers", "softmax")],
)
def test_an_exported_layer_is_the_layer(name: str, method: str) -> None:
    make, shape = CASES[name]
    torch.manual_seed(0)
    layer = AdaptiveComputation(make(), method)
    nn.init.normal_(layer.head.readout.weight, std=3.0, generator=seeded())
    rows = {"inputs": {0: torch.export.Dim("rows", max=1000)}}
    program = torch.export.export(Exits(layer), (torch.randn(3, *shape),), dynamic_shapes=rows)
    for num in (2, 7):
        inputs = torch.randn(num, *shape, generator=seeded())
        found, due = program.module()(inputs), Exits(layer)(inputs)
        for one, other in zip(found, due, strict=True):
            torch.testing.assert_close(one, other)


class OfPadded(nn.Module):
    def __init__(self, layer: AdaptiveComputation) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor, padding: Tensor, price: Tensor) -> tuple[Tensor, ...]:
        pondered = self.layer({"tokens": tokens, "padding": padding}, price)
        return pondered.outputs, pondered.log_prob, pondered.exits


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("per", ["sequence", "token"])
def test_padding_and_prices_are_given_to_an_exported_layer(per: Any, *, grad: bool) -> None:
    torch.manual_seed(0)
    module = OfPadded(AdaptiveComputation(RepeatedBlock(TransformerBlock(4, 2), 4, 3, per=per)))
    nn.init.normal_(module.layer.head.readout.weight, std=3.0, generator=seeded())

    def rows(lengths: list[int]) -> tuple[Tensor, ...]:
        padding = torch.arange(5) >= torch.tensor(lengths).unsqueeze(1)
        tokens = torch.randn(len(lengths), 5, 4, generator=seeded())
        return tokens, padding, torch.rand(len(lengths), generator=seeded()) + 0.01

    of_any = {0: torch.export.Dim("rows", max=1000)}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(module, rows([5, 2, 3]), dynamic_shapes=(of_any,) * 3)
    given = rows([1, 4, 5, 2, 3, 3, 5])
    for one, other in zip(program.module()(*given), module(*given), strict=True):
        torch.testing.assert_close(one, other)


class OfTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = AdaptiveRNN(nn.LSTMCell(2 + 1, 3), 3)

    def forward(self, inputs: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        outputs, _, pondered = self.network(inputs, price=price)
        return outputs, pondered.ponder_cost


class OfWidths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = VariableComputationCell(nn.GRUCell(2, 3))

    def forward(self, inputs: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        return self.cell(inputs.squeeze(0), price=price)[:2]  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [OfTokens, OfWidths])
def test_an_exported_recurrent_network_is_the_network(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, rows = make(), torch.export.Dim("rows", max=1000)

    def tokens(num: int) -> tuple[Tensor, Tensor]:
        length = 4 if make is OfTokens else 1
        return torch.randn(length, num, 2, generator=seeded()), torch.full((num,), 0.1)

    program = torch.export.export(module, tokens(3), dynamic_shapes=({1: rows}, {0: rows}))
    for one, other in zip(program.module()(*tokens(7)), module(*tokens(7)), strict=True):
        torch.testing.assert_close(one, other)
