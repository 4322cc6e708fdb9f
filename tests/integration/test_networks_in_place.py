"""Layers that write over what they are given, as `nn.ReLU(inplace=True)` does."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn

from haltwise import InputError
from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveProcess,
    Coupling,
    LayerStack,
    RepeatedBlock,
    ResidualStage,
)


def part(*, in_place: bool) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=in_place), nn.Linear(4, 4))


def unit(*, in_place: bool) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(2), nn.SiLU(inplace=in_place), nn.Conv2d(2, 2, 1))


Make = Callable[[bool], AdaptiveProcess]
CASES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "rows": (lambda own: LayerStack([part(in_place=own) for _ in range(4)], 4), (4,)),
    "tokens": (
        lambda own: LayerStack([part(in_place=own) for _ in range(4)], 4, per="token"),
        (3, 4),
    ),
    "loops": (lambda own: RepeatedBlock(part(in_place=own), 4, 4, inject=False), (3, 4)),
    "looping tokens": (
        lambda own: RepeatedBlock(part(in_place=own), 4, 4, inject=False, per="token"),
        (3, 4),
    ),
    "positions": (
        lambda own: ResidualStage([unit(in_place=own) for _ in range(4)], 2, per="position"),
        (2, 3, 3),
    ),
}


def layer(make: Make, coupling: str, *, in_place: bool) -> AdaptiveComputation:
    torch.manual_seed(0)
    found = AdaptiveComputation(make(in_place), "graves", coupling).double().eval()
    nn.init.normal_(found.head.readout.weight, std=0.3, generator=seeded(1))
    nn.init.constant_(found.head.readout.bias, 3.0)
    return found


MODES: dict[str, Callable[[], Any]] = {
    "with gradients": contextlib.nullcontext,
    "without": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coupling", [Coupling.EXPECTED_LOSS, Coupling.EXPECTED_STATE])
@pytest.mark.parametrize("name", CASES)
def test_exits_are_what_they_were_before_the_next_layer(
    name: str, coupling: str, mode: str
) -> None:
    make, shape = CASES[name]
    given = torch.randn(9, *shape, generator=seeded(), dtype=DOUBLE)
    over, beside = (layer(make, coupling, in_place=own) for own in (True, False))
    with MODES[mode]():
        found, due = over(given.clone(), 0.1), beside(given, 0.1)
        torch.testing.assert_close(found.outputs, due.outputs)
        torch.testing.assert_close(found.log_prob, due.log_prob)
        ran, expected = over.run(given, 0.1), beside.run(given, 0.1)
        torch.testing.assert_close(ran.output, expected.output)
        assert torch.equal(ran.exits, expected.exits)
        assert (ran.exits < 3).any()
    if mode == "with gradients":
        slopes = []
        for pondered, own in ((found, over), (due, beside)):
            pondered.outputs.square().sum().backward()
            slopes.append([weight.grad for weight in own.process.parameters()])
        torch.testing.assert_close(*slopes)


class Hidden(nn.Module):
    """Writes over its input, and says so nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.linear(inputs.mul_(2))
        return found


@pytest.mark.parametrize(
    "process",
    [
        lambda: LayerStack([Hidden() for _ in range(3)], 4),
        lambda: LayerStack([Hidden() for _ in range(3)], 4, per="token"),
        lambda: RepeatedBlock(Hidden(), 4, 3, inject=False),
    ],
)
def test_what_writes_over_exits_without_saying_so_is_refused(process: Any) -> None:
    made = AdaptiveComputation(process(), coupling="expected-state")
    with torch.no_grad(), pytest.raises(InputError, match="in place; let it make a copy"):
        made(torch.randn(5, 3, 4), 0.1)


def test_a_stage_is_the_loop_that_it_was_trained_as() -> None:
    """In x + f(x) an f that begins in place changes x, too, wherever such a network was trained."""
    torch.manual_seed(0)
    units = [nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)) for _ in range(3)]
    images = torch.randn(5, 2, 3, 3, generator=seeded())
    pondered = AdaptiveComputation(ResidualStage(units, 2))(images, 0.1)
    image, due = images.clone(), []
    for each in units:
        image = image + each(image)
        due.append(image.clone())
    torch.testing.assert_close(pondered.outputs, torch.stack(due, 1))
