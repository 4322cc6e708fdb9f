"""The fused step of many rows against the same step in float64."""

import pytest
import torch
from draws import DOUBLE, randn
from fused import fused_device
from torch.fx.experimental.proxy_tensor import make_fx

from haltwise import InputError
from haltwise._kernels import Coordinatewise, fused

__all__ = ["fused_device"]

SHAPES = [  # H, L, inputs, outputs, B, D
    (20, 2, 4, 4, 3, 50),  # as shipped
    (20, 2, 2, 2, 1, 70),
    (20, 4, 4, 4, 1, 20),
    (10, 1, 4, 1, 2, 30),
    (5, 4, 4, 4, 2, 17),
    (24, 2, 4, 4, 1, 20),
    (32, 2, 2, 4, 1, 20),
    (33, 3, 4, 4, 1, 40),
    (48, 1, 4, 2, 1, 20),
    (64, 2, 2, 4, 1, 20),
]


def own(size: int, num_layers: int, num_inputs: int, num_outputs: int) -> Coordinatewise:
    fans = [num_inputs if layer == 0 else size for layer in range(num_layers)]
    return Coordinatewise(
        [0.3 * randn(4 * size, fan + size, seed=seed) for seed, fan in enumerate(fans)],
        [0.3 * randn(4 * size, seed=10 + seed) for seed in range(num_layers)],
        0.3 * randn(num_outputs, size, seed=20),
        0.3 * randn(num_outputs, seed=21),
        0.7,
    )


def placed(wide: Coordinatewise, device: torch.device) -> Coordinatewise:
    def to(value: torch.Tensor) -> torch.Tensor:
        return value.to(device, torch.float32)

    return Coordinatewise(
        [to(value) for value in wide.weights],
        [to(value) for value in wide.biases],
        to(wide.readout_weight),
        to(wide.readout_bias),
        wide.scale,
    )


@pytest.mark.parametrize(("size", "layers", "inputs", "outputs", "num", "dim"), SHAPES)
def test_a_step_is_as_exact_as_float32_can_be(
    fused_device: torch.device,
    size: int,
    layers: int,
    inputs: int,
    outputs: int,
    num: int,
    dim: int,
) -> None:
    narrow = placed(own(size, layers, inputs, outputs), fused_device)
    assert fused.serves(fused_device, torch.float32, size, layers)
    state = num, dim, layers, size
    grad = 0.1 * randn(num, dim, dtype=torch.float32)
    grad[0, :4] = torch.tensor([0.0, 1e-6, 1e6, -1e-30])
    hidden = 0.5 * randn(*state, seed=3, dtype=torch.float32).tanh()
    cell = randn(*state, seed=4, dtype=torch.float32)
    found = narrow.step(grad.to(fused_device), hidden.to(fused_device), cell.to(fused_device))
    # The float32 weights are what both have.
    wide = Coordinatewise(
        [value.cpu().double() for value in narrow.weights],
        [value.cpu().double() for value in narrow.biases],
        narrow.readout_weight.cpu().double(),
        narrow.readout_bias.cpu().double(),
        narrow.scale,
    )
    with torch.no_grad():
        right = wide.differentiable_step(grad.double(), hidden.double(), cell.double())
    for one, other in zip(found, right, strict=True):
        assert (one.cpu().to(DOUBLE) - other).norm() <= 1e-6 * other.norm()


def test_what_is_no_number_stays_in_its_row(fused_device: torch.device) -> None:
    narrow = placed(own(20, 2, 4, 4), fused_device)
    grad, state = randn(70, 2, dtype=torch.float32).to(fused_device), (70, 2, 2, 20)
    hidden, cell = (randn(*state, seed=s, dtype=torch.float32).to(fused_device) for s in (1, 2))
    before = narrow.step(grad, hidden, cell)
    grad[3, 0], hidden[5, 1, 0, 18] = torch.inf, torch.nan
    after = narrow.step(grad, hidden, cell)
    bad = torch.tensor([3, 5])
    good = torch.ones(70, dtype=torch.bool, device=fused_device)
    good[bad] = False
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[good], other[good])
    assert after[0][bad].isnan().any(1).all()


def test_states_are_replaced_in_place_only_if_asked(fused_device: torch.device) -> None:
    narrow = placed(own(10, 1, 2, 4), fused_device).prepare()
    grad = randn(2, 5, dtype=torch.float32).to(fused_device)
    hidden, cell = (
        randn(2, 5, 1, 10, seed=seed, dtype=torch.float32).to(fused_device) for seed in (1, 2)
    )
    kept = hidden.clone()
    update, _, new_hidden, new_cell = narrow.step(grad, hidden, cell)
    assert torch.equal(hidden, kept)
    again, _, *new = narrow.step(grad, hidden, cell, in_place=True)
    assert torch.equal(again, update)
    assert new[0] is hidden
    assert torch.equal(hidden, new_hidden)
    assert torch.equal(cell, new_cell)


def test_weights_that_change_are_packed_anew(fused_device: torch.device) -> None:
    narrow = placed(own(10, 1, 2, 4), fused_device).prepare()
    grad, zeros = torch.ones(1, 3, device=fused_device), torch.zeros(1, 3, 1, 10)
    hidden, cell = zeros.to(fused_device), zeros.to(fused_device)
    before = narrow.step(grad, hidden, cell)[0]
    narrow.readout_bias.add_(1)
    assert not torch.equal(narrow.step(grad, hidden, cell)[0], before)


def test_a_state_of_another_shape_is_refused(fused_device: torch.device) -> None:
    narrow = placed(own(10, 1, 2, 4), fused_device)
    grad, state = torch.ones(1, 3, device=fused_device), torch.zeros(1, 2, 1, 10)
    state = state.to(fused_device)
    with pytest.raises(InputError, match="hidden state has the shape"):
        narrow.step(grad, state, state.clone())


def test_a_traced_step_is_the_step(fused_device: torch.device) -> None:
    narrow = placed(own(10, 1, 4, 4), fused_device)

    def update(grad: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        return narrow.step(grad, hidden, cell)[0]

    shapes = (2, 5), (2, 5, 1, 10), (2, 5, 1, 10)
    given = [randn(*shape, dtype=torch.float32).to(fused_device) for shape in shapes]
    other = [value + 0.1 for value in given]
    torch.testing.assert_close(make_fx(update)(*given)(*other), update(*other))
