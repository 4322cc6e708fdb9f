"""Networks that are not ours inside the adaptive layer: what fits runs, what does not is named."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn

from haltwise import InputError
from haltwise.halting import StickBreaking
from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveProcess,
    AdaptiveRNN,
    ItemStep,
    LayerStack,
    RecurrentCell,
    RepeatedBlock,
    ResidualStage,
)
from haltwise.stop_rules import FixedBudget, Patience, ReturnedIterate, StopPolicy

INPUTS = torch.randn(6, 2, generator=seeded())


def layer() -> AdaptiveComputation:
    torch.manual_seed(0)
    return AdaptiveComputation(RecurrentCell(nn.GRUCell(2 + 1, 5), 4))


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ([0.1] * 6, r"price must be a number or a tensor of shape \[6\]"),
        (np.full(5, 0.1), r"price must be a number or have shape \[6\], got shape \[5\]"),
        (np.full((6, 1), 0.1), r"price must be a number or have shape \[6\], got shape \[6, 1\]"),
        (np.ma.masked_array([0.1] * 6, [True] + [False] * 5), "price .*mask"),
        (torch.ones(6, dtype=torch.bool), "prices must be real numbers, got torch.bool"),
        (torch.ones(6, dtype=torch.complex64), "prices must be real numbers, got torch.complex64"),
        (1e-300, "prices must lie between 1.2e-38 and 3.4e.38, got .1e-300"),
        (1e300, "prices must lie between 1.2e-38 and 3.4e.38, got .1e.300"),
        (torch.tensor([0.1] * 5 + [math.nan]), "prices must be finite numbers above 0, got .nan"),
    ],
)
def test_prices_that_are_none_are_named(price: Any, message: str) -> None:
    for call in (layer(), layer().run):
        with pytest.raises(InputError, match=message):
            call(INPUTS, price)


def test_an_array_of_prices_is_a_tensor_of_them() -> None:
    prices = np.logspace(-3, 0, 6)
    found, due = layer()(INPUTS, prices), layer()(INPUTS, torch.from_numpy(prices))
    assert torch.equal(found.price, due.price)
    assert torch.equal(found.log_prob, due.log_prob)


class Bare(nn.Module):
    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        return state


# What a caller gives who has not looked at the types.
CELL: Any = RecurrentCell
RNN: Any = AdaptiveRNN
BLOCK: Any = RepeatedBlock
STACK: Any = LayerStack
LAYER: Any = AdaptiveComputation


def encoder(**settings: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **settings)


def linear(*sizes: int) -> list[nn.Module]:
    return [nn.Linear(4, size) for size in sizes]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CELL(Bare()), "cell must be an nn.RNNCell, nn.GRUCell or nn.LSTMCell"),
        (lambda: CELL(nn.GRU(3, 5)), "cell must be .* got GRU"),
        (lambda: RNN(Bare()), "cell must be an nn.RNNCell"),
        (lambda: BLOCK(encoder(), 8, 3), "TransformerEncoderLayer reads tokens .L, B, D"),
        (
            lambda: STACK([nn.Sequential(nn.Identity(), encoder())] * 2, 8),
            "rows would see each other; make it with batch_first=True",
        ),
        (
            lambda: BLOCK(nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False), 8, 3),
            "TransformerEncoderLayer reads tokens",
        ),
        (lambda: BLOCK(lambda x: x, 8, 3), "block must be an nn.Module"),
        (lambda: BLOCK(encoder(batch_first=True), 8, 1), "max_steps must be at least 2"),
        (lambda: STACK(linear(4, 4), 4, costs=[1, math.inf]), "costs must be finite and rise"),
        (lambda: STACK(linear(4, 4), 4, costs=[1e9, 1e9 + 1]), "rise .* in torch.float32"),
        (lambda: STACK(linear(4, 4), 4, costs="12"), "costs must be a number for each of 2"),
        (lambda: STACK(linear(4, 4), 4, features="mean"), "features must be a function"),
        (
            lambda: LAYER(STACK(linear(4, 4), 4), StickBreaking),
            r"method must be .* as in StickBreaking\(...\)",
        ),
    ],
)
def test_what_cannot_be_a_part_is_named_when_it_is_made(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make()


def first(outputs: Tensor) -> Tensor:
    return outputs[..., :1]


def positions(unit: nn.Module) -> AdaptiveProcess:
    return ResidualStage([unit, unit], 4, per="position")


@pytest.mark.parametrize(
    ("process", "shape", "message"),
    [
        (lambda: RepeatedBlock(nn.Linear(8, 1), 8, 3), (4, 5, 8), "the block must return a tensor"),
        (lambda: RepeatedBlock(nn.GRU(8, 8), 8, 3), (4, 5, 8), "GRU reads tokens"),
        (
            lambda: RepeatedBlock(nn.GRU(8, 8, batch_first=True), 8, 3),
            (4, 5, 8),
            "the block must return a tensor .* of type tuple",
        ),
        (lambda: RepeatedBlock(nn.Identity(), 8, 3), (4, 8), r"inputs must be tokens \[B, L, 8\]"),
        (lambda: RepeatedBlock(nn.Identity(), 8, 3), (4, 0, 8), "L at least 1"),
        (lambda: positions(nn.Conv2d(4, 1, 1)), (2, 4, 3, 3), "unit 0 must return a tensor of"),
        (lambda: positions(nn.Identity()), (4, 3, 3), r"inputs must be images \[n, 4, H, W\]"),
        (lambda: LayerStack(linear(4, 4), 7), (5, 4), r"must have shape \[\d, ..., 7\], got"),
        (
            lambda: LayerStack(linear(4, 4, 4), 1, heads=linear(3, 1, 3), features=first),
            (5, 4),
            r"all exits of LayerStack must return outputs of one shape, got \[3\] and then \[1\]",
        ),
        (
            lambda: LayerStack([nn.GRU(4, 4, batch_first=True)] * 2, 4),
            (5, 3, 4),
            "layer 0, a GRU, must return a tensor",
        ),
        (lambda: LayerStack([nn.Identity()] * 2, 4), (2, 4, 3, 3, 3), "give features"),
        (lambda: LayerStack(linear(4, 4), 4), (), "inputs must be a tensor with the rows"),
    ],
)
def test_what_is_of_another_shape_is_named_and_not_broadcast(
    process: Callable[[], AdaptiveProcess], shape: tuple[int, ...], message: str
) -> None:
    inputs = torch.zeros(shape)
    with pytest.raises(InputError, match=message):
        AdaptiveComputation(process())(inputs, 0.1)
    with pytest.raises(InputError, match=message):
        AdaptiveComputation(process()).run(inputs, 0.1, rule=FixedBudget(2))


class Odd(AdaptiveProcess):
    """A process whose state or step is what the test gives."""

    num_features = 2
    steps_alike = True

    def __init__(self, state: Any, after: Any = None) -> None:
        super().__init__(3)
        self.given, self.after = state, after

    def init(self, inputs: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.given(inputs)
        return found

    def step(
        self, step: int | Tensor, state: dict[str, Tensor], active: Tensor | None = None
    ) -> ItemStep:
        values = state["values"]
        found = ItemStep(values, values, state)
        return found if self.after is None else self.after(found)


@pytest.mark.parametrize(
    ("state", "after", "message"),
    [
        (lambda x: (x,), None, "the state of Odd must be a dictionary of tensors"),
        (lambda x: {"values": x, "mask": None}, None, "mask of the state of Odd must be a tensor"),
        (lambda x: {"values": x, "a": {"b": x}}, None, "a of the state of Odd must be a tensor"),
        (lambda x: {"values": x, "n": 3}, None, "n of the state of Odd must be a tensor"),
        (lambda x: {"values": x}, tuple, r"a step of Odd must return an ItemStep\("),
        (lambda x: {"values": x}, lambda f: f[:2], "a step of Odd must return an ItemStep"),
        (
            lambda x: {"values": x},
            lambda f: f._replace(output=f.output.mean()),
            "the outputs of Odd must begin with the shape of its items",
        ),
    ],
)
def test_a_process_that_breaks_its_contract_is_told(state: Any, after: Any, message: str) -> None:
    for name in ("forward", "run"):
        with pytest.raises(InputError, match=message):
            getattr(AdaptiveComputation(Odd(state, after)), name)(INPUTS, 0.1)


def test_a_state_that_gets_new_names_is_told_when_rows_take_turns() -> None:
    def grown(found: ItemStep) -> ItemStep:
        return found._replace(state={**found.state, "before": found.output})

    process = Odd(lambda inputs: {"values": inputs}, grown)
    with pytest.raises(InputError, match="the state of Odd must keep its names"):
        AdaptiveComputation(process).run(INPUTS, 0.1, rule=FixedBudget(1), sizes=[2])


def test_integers_and_masks_in_a_state_are_kept() -> None:
    def state(inputs: Tensor) -> dict[str, Tensor]:
        count = inputs.new_zeros(len(inputs), dtype=torch.int64)
        return {"values": inputs, "count": count, "odd": count.bool()}

    def after(found: ItemStep) -> ItemStep:
        count, odd = found.state["count"] + 1, ~found.state["odd"]
        output = torch.stack((count, odd), 1).float()
        return ItemStep(output, found.features, {**found.state, "count": count, "odd": odd})

    executed = AdaptiveComputation(Odd(state, after)).run(
        INPUTS, 0.1, rule=FixedBudget(2), sizes=[2]
    )
    assert executed.output.tolist() == [[3.0, 1.0]] * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("before", [torch.float32, DOUBLE])
def test_a_network_in_half_precision_costs_what_it_did(
    dtype: torch.dtype, before: torch.dtype
) -> None:
    process = LayerStack(linear(4, 4, 4), 4, costs=[2049, 2051, 100_000])
    network = nn.Sequential(AdaptiveComputation(process)).to(before).to(dtype)
    found: Any = network[0]
    assert found.process.exit_costs.tolist() == [2049, 2051, 100_000]
    assert found.process.layers[0].weight.dtype == dtype
    executed = found.run(torch.randn(5, 4, dtype=dtype), 0.1, rule=FixedBudget(1))
    assert executed.cost.tolist() == [2051] * 5
    assert found.double().process.exit_costs.dtype == DOUBLE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_no_longer_moves_ends_in_half_precision(dtype: torch.dtype) -> None:
    class Settled(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.ones_like(tokens)

    found = AdaptiveComputation(RepeatedBlock(Settled(), 4, max_steps=6), generator=seeded())
    nn.init.ones_(found.head.readout.weight)
    nn.init.constant_(found.head.readout.bias, -20.0)  # until a unit is moved by the logarithm
    tokens = torch.randn(5, 3, 4, generator=seeded())
    assert found.run(tokens, 0.1).exits.tolist() == [1] * 5
    assert found.to(dtype).run(tokens.to(dtype), 0.1).exits.tolist() == [1] * 5


def test_a_position_that_has_ended_stays_whatever_later_units_make_of_it() -> None:
    class Inverse(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return 1 / image

    stage = ResidualStage([Inverse(), Inverse()], 4, per="position")
    image, active = torch.ones(1, 4, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    image[0, :, 0, 0], active[0, 0, 0] = 0, False
    output = stage.step(0, stage.init(image), active).output
    assert output[0, 0, 0].tolist() == [0.0] * 4
    assert output[0, 1, 1].tolist() == [2.0] * 4


class Unit(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, **settings)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(image)).relu()
        return found


def test_batch_normalization_that_mixes_rows_is_refused_and_not_moved() -> None:
    images = torch.randn(9, 4, 5, 5, generator=seeded())
    found = AdaptiveComputation(ResidualStage([Unit(), Unit()], 4))
    found(images, 0.1)  # trains
    before = {name: value.clone() for name, value in found.state_dict().items()}
    with pytest.raises(InputError, match=r"units.0.norm of ResidualStage .* call eval\(\)"):
        found.run(images, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())
    found.eval().run(images, 0.1)
    blind = AdaptiveComputation(ResidualStage([Unit(track_running_stats=False)] * 2, 4)).eval()
    with pytest.raises(InputError, match="let it track running statistics"):
        blind.run(images, 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "patience"}, "rule must be a stop rule with its settings, got 'patience'"),
        ({"rule": Patience}, r"rule must be .* as in Patience\(...\)"),
        (
            {"rule": StopPolicy(FixedBudget(2), ReturnedIterate.CURRENT)},
            "rule must be .* a policy has one in .rule",
        ),
        ({"model": "runs/exits"}, "model must be a halting model, got 'runs/exits'"),
        ({"sizes": 8}, "sizes must be whole numbers in a list, got 8"),
        (
            {"rule": Patience(2, 0.0), "observe": lambda outputs: outputs},
            "observe must make a loss of each of 6 items",
        ),
        (
            {"rule": Patience(2, 0.0), "observe": lambda outputs: outputs.mean()},
            "observe must make a loss of each of 6 items",
        ),
    ],
)
def test_what_run_cannot_use_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer().run(INPUTS, 0.1, **settings)


def test_inputs_losses_and_exits_that_are_no_tensors_are_named() -> None:
    inputs: Any
    for inputs in (INPUTS.tolist(), INPUTS.numpy(), None, torch.tensor(1.0)):
        for call in (layer(), layer().run):
            with pytest.raises(InputError, match="inputs must be a tensor with the rows along"):
                call(inputs, 0.1)
    pondered = layer()(INPUTS, 0.1)
    losses: Any = np.zeros((6, 4))
    for found in (pondered.objective, pondered.trajectory):
        with pytest.raises(InputError, match=r"losses must be a tensor of shape \[6, 4\]"):
            found(losses)
    with pytest.raises(InputError, match=r"observed must be a tensor of shape \[6, 4\]"):
        pondered.trajectory(torch.zeros(6, 4), torch.zeros(6, 3))
    exits: Any
    for exits in (1, torch.tensor(1), torch.zeros(6)):
        with pytest.raises(InputError, match=r"exits must be int64 of shape \[6\]"):
            pondered.at(exits)


def test_no_rows_have_no_losses() -> None:
    pondered = layer()(INPUTS[:0], 0.1)
    assert pondered.log_prob.shape == (0, 4)
    assert pondered.objective(torch.zeros(0, 4)).shape == (0,)
    rnn = AdaptiveRNN(nn.GRUCell(3, 5), 4)
    outputs, _, tokens = rnn(torch.zeros(7, 0, 2), price=0.1)
    assert (outputs.shape, tokens.ponder_cost.shape) == ((7, 0, 5), (7, 0))


def test_a_compiled_cell_is_the_cell() -> None:
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 5)
    compiled: Any = torch.compile(cell, backend="eager")
    found, due = (RecurrentCell(one, 3) for one in (compiled, cell))
    assert found.state_size == 10
    outputs = [one.step(0, one.init(INPUTS)).output for one in (found, due)]
    assert torch.equal(*outputs)


HIDDEN = torch.zeros(1, 3, 5)


@pytest.mark.parametrize(
    ("inputs", "hidden", "message"),
    [
        ((2,), None, r"inputs must be a tensor of shape \[L, B, D\], \[L, D\] of one sequence, or"),
        ((7, 3), None, "inputs must have 2 numbers a token, one less than the cell reads, got 3"),
        ((0, 2), None, "inputs have no tokens"),
        ((7, 2), HIDDEN, r"hidden must be a pair of tensors of shape \[1, 5\]"),
        ((7, 3, 3), None, "inputs must have 2 numbers a token, one less than the cell reads"),
        ((7, 3, 2), HIDDEN, r"hidden must be a pair of tensors of shape \[1, 3, 5\]"),
        ((7, 3, 2), (HIDDEN[0], HIDDEN[0]), r"got shape \[3, 5\], shape \[3, 5\]"),
        ((7, 3, 2), (HIDDEN.expand(2, 3, 5),) * 2, r"got shape \[2, 3, 5\], shape \[2, 3, 5\]"),
        ((7, 3, 2), (HIDDEN[:, :2],) * 2, r"got shape \[1, 2, 5\]"),
    ],
)
def test_sequences_and_states_of_other_shapes_are_named(
    inputs: tuple[int, ...], hidden: Any, message: str
) -> None:
    rnn = AdaptiveRNN(nn.LSTMCell(3, 5), 4)
    for call in (rnn, rnn.run):
        with pytest.raises(InputError, match=message):
            call(torch.zeros(inputs), hidden, price=0.1)
