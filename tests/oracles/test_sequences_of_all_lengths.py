"""Sequences of different lengths: each is what it is alone, whatever stands in its padding."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from haltwise import InputError
from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveProcess,
    AdaptiveRNN,
    ItemStep,
    LayerStack,
    RecurrentCell,
    RepeatedBlock,
    TransformerBlock,
)

DIM, LENGTHS = 8, (3, 5, 1, 4)
PRICES = torch.tensor([0.01, 0.3, 0.05, 0.1])


def sequences(dim: int) -> list[Tensor]:
    generator = seeded()
    return [torch.randn(length, dim, generator=generator, dtype=DOUBLE) for length in LENGTHS]


def padded(parts: list[Tensor], fill: float, *, left: bool = False) -> dict[str, Tensor]:
    """The sequences with two tokens more than the longest has, padding as PyTorch's layers do."""
    most = max(map(len, parts)) + 2
    tokens = torch.full((len(parts), most, parts[0].shape[1]), fill, dtype=DOUBLE)
    padding = torch.ones(len(parts), most, dtype=torch.bool)
    for row, part in enumerate(parts):
        at = slice(most - len(part), most) if left else slice(len(part))
        tokens[row, at], padding[row, at] = part, False
    return {"tokens": tokens, "padding": padding}


class Mean(nn.Module):
    """Adds the mean over tokens, and is told which they are."""

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        if padding is None:
            padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        mean = tokens.sum(1, keepdim=True) / (~padding).sum(1).view(-1, 1, 1)
        return (tokens + mean).tanh()


class Mixing(nn.Linear):
    """A linear layer by its kind alone: tokens see each other."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.mean(1, keepdim=True)) + tokens


class Averaged(nn.Sequential):
    """Several layers by its kind, and more."""

    def forward(self, tokens: Tensor) -> Tensor:
        mean: Tensor = self[0](tokens.mean(1, keepdim=True))
        return mean + tokens


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(DIM, 2, 16, dropout=0.0, batch_first=True)


def heads() -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(DIM, 3), nn.Tanh()) for _ in range(3)]


PROCESSES: dict[str, Callable[[], AdaptiveProcess]] = {
    "loops of sequences": lambda: RepeatedBlock(TransformerBlock(DIM, 2), DIM, 3),
    "loops of sequences, causal": lambda: RepeatedBlock(
        TransformerBlock(DIM, 2, causal=True), DIM, 3, inject=False
    ),
    "loops of tokens": lambda: RepeatedBlock(TransformerBlock(DIM, 2), DIM, 3, per="token"),
    "loops of tokens, causal, shared keys": lambda: RepeatedBlock(
        TransformerBlock(DIM, 2, causal=True), DIM, 3, per="token", keys="shared"
    ),
    "torch's layer": lambda: RepeatedBlock(encoder_layer(), DIM, 3),
    "torch's encoder": lambda: RepeatedBlock(
        nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False), DIM, 3, per="token"
    ),
    "a block of the caller's": lambda: RepeatedBlock(
        nn.Sequential(*[Mean()] * 2, nn.Tanh(), nn.LayerNorm(DIM)),  # one of them twice
        DIM,
        3,
    ),
    "layers of sequences": lambda: LayerStack([Mean() for _ in range(3)], DIM),
    "layers of sequences with heads": lambda: LayerStack(
        [TransformerBlock(DIM, 2) for _ in range(3)], 3, heads=heads()
    ),
    "layers of tokens": lambda: LayerStack(
        [encoder_layer() for _ in range(3)], 3, heads=heads(), per="token"
    ),
    "layers of tokens, shared keys": lambda: LayerStack(
        [TransformerBlock(DIM, 2) for _ in range(3)], DIM, per="token", keys="shared"
    ),
}


def shaken(layer: Any) -> Any:
    """The layer in float64 with a head of random weights, such that items end at all exits."""
    generator = seeded(1)
    for parameter in layer.head.parameters():
        shape = parameter.shape
        parameter.data = 0.5 * torch.randn(shape, generator=generator, dtype=DOUBLE)
    return layer.double().eval()


def layer_of(name: str, coupling: str) -> AdaptiveComputation:
    torch.manual_seed(0)
    layer: AdaptiveComputation = shaken(AdaptiveComputation(PROCESSES[name](), coupling=coupling))
    return layer


@pytest.mark.parametrize("coupling", ["expected-loss", "expected-state"])
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("left", [False, True])
def test_a_sequence_that_is_padded_is_what_it_is_alone(
    name: str, coupling: str, left: bool
) -> None:
    layer, parts = layer_of(name, coupling), sequences(DIM)
    inputs = padded(parts, math.nan, left=left)
    present = ~inputs["padding"]
    pondered = layer(inputs, PRICES)
    executed = layer.run(inputs, PRICES)
    for row, part in enumerate(parts):
        alone, run = (
            layer(part.unsqueeze(0), PRICES[row]),
            layer.run(part.unsqueeze(0), PRICES[row]),
        )
        due, found = alone.log_prob[0], pondered.log_prob[row]
        returned, ran = pondered.output[row], executed.output[row]
        if layer.process.items_interact:
            found = found[present[row]]
            assert executed.exits[row][present[row]].equal(run.exits[0])
            assert executed.exits[row][inputs["padding"][row]].eq(-1).all()
            assert executed.cost[row][inputs["padding"][row]].eq(0).all()
        else:
            assert executed.exits[row] == run.exits[0]
        torch.testing.assert_close(found, due, rtol=1e-9, atol=1e-11)
        for values, value in ((returned, alone.output[0]), (ran, run.output[0])):
            assert values[inputs["padding"][row]].eq(0).all()
            torch.testing.assert_close(values[present[row]], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("coupling", ["expected-loss", "expected-state"])
def test_padding_is_no_item(coupling: str) -> None:
    layer, parts = layer_of("loops of tokens", coupling), sequences(DIM)
    inputs = padded(parts, 0.0)
    present = ~inputs["padding"]
    pondered = layer(inputs, 0.1)
    assert pondered.present is not None
    assert pondered.present.equal(present)
    outputs = pondered.outputs if coupling == "expected-loss" else pondered.output
    losses = outputs.square().mean(-1)
    spoilt = losses.masked_fill(~(present if losses.ndim == 2 else present.unsqueeze(-1)), math.nan)
    objective = pondered.objective(spoilt)
    alone = torch.cat(
        [
            one.objective(
                (one.outputs if coupling == "expected-loss" else one.output).square().mean(-1)
            )[0]
            for one in (layer(part.unsqueeze(0), 0.1) for part in parts)
        ]
    )
    torch.testing.assert_close(objective[present], alone, rtol=1e-9, atol=1e-11)
    for nothing in (objective, pondered.ponder_cost, pondered.expected_cost):
        assert nothing[~present].eq(0).all()
    assert pondered.exits[~present].eq(-1).all()
    objective.sum().backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in layer.parameters())
    record = pondered.trajectory(pondered.outputs.square().mean(-1))
    assert record.num_items == sum(LENGTHS)


class Minding(AdaptiveProcess):
    """Counts tokens, and minds that no padding is called one that runs."""

    num_features, items_interact = 1, True

    def init(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**inputs, "sum": torch.zeros_like(inputs["tokens"])}

    def present(self, state: dict[str, Tensor]) -> Tensor:
        return ~state["padding"]

    def step(
        self, step: int | Tensor, state: dict[str, Tensor], active: Tensor | None = None
    ) -> ItemStep:
        assert active is not None
        assert not (active & state["padding"]).any()
        total = state["sum"] + active.unsqueeze(-1) * state["tokens"]
        return ItemStep(total, total, {**state, "sum": total})


@pytest.mark.parametrize("coupling", ["expected-loss", "expected-state"])
def test_a_process_is_told_of_no_padding_that_runs(coupling: str) -> None:
    layer = shaken(AdaptiveComputation(Minding(4), coupling=coupling))
    inputs = padded(sequences(1), 1.0)
    pondered, executed = layer(inputs, PRICES), layer.run(inputs, PRICES)
    for exits in (pondered.exits, executed.exits):
        assert exits.eq(-1).equal(inputs["padding"])
        assert exits.max() > exits[~inputs["padding"]].min()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_several_tensors_come_by_name() -> None:
    layer = layer_of("loops of sequences", "expected-loss")
    tokens = torch.zeros(2, 3, DIM, dtype=DOUBLE)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    wrong: list[tuple[Any, str]] = [
        ({}, "inputs by name must be at least one tensor"),
        ({"tokens": tokens, "padding": mask[:1]}, r"as many rows each, got \[1, 2\]"),
        ({"tokens": tokens, "padding": mask[:, :1]}, r"a mask \[B, L\], True where"),
        ({"tokens": tokens[:, 0, 0], "padding": mask[:, 0]}, r"a mask \[B, L\], True where"),
        ({"tokens": tokens, "padding": mask.double()}, "True where no token is, .*float64"),
        (
            {"tokens": tokens, "padding": ~mask},
            "every row must have a token that is no padding; . have none",
        ),
        ({"tokens": tokens, "mask": mask}, "'tokens' and 'padding', got .'mask', 'tokens'."),
        ({"tokens": tokens, "padding": mask.to("meta")}, "on one device, got cpu, meta"),
        ({"padding": mask}, "by name 'tokens' and 'padding', got .'padding'."),
        ({"tokens": None}, "inputs.'tokens'. must be a tensor with the rows along"),
        ([tokens], "inputs must be a tensor with the rows along"),
        (torch.nested.as_nested_tensor([*tokens], layout=torch.jagged), "must be no nested tensor"),
    ]
    for inputs, message in wrong:
        for call in (layer, layer.run):
            with pytest.raises(InputError, match=message):
                call(inputs, 0.1)
    single = AdaptiveComputation(RecurrentCell(nn.GRUCell(3, 5), 4))
    with pytest.raises(InputError, match="RecurrentCell reads one tensor, got several by name"):
        single({"tokens": torch.zeros(3, 2)}, 0.1)
    traced: nn.Module = torch.jit.trace(nn.Tanh(), tokens.float())
    whole = nn.LayerNorm([3, DIM])  # of all tokens together
    for block in (nn.Conv1d(3, 3, 1), Mixing(DIM, DIM), Averaged(nn.Tanh()), whole, traced):
        blind = AdaptiveComputation(RepeatedBlock(nn.Sequential(block), DIM, 3))
        with pytest.raises(InputError, match=r"\w+ cannot be told which tokens are padding"):
            blind({"tokens": tokens.float(), "padding": mask}, 0.1)


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("method", ["graves", "stick-breaking"])
def test_a_sequence_that_is_packed_is_what_it_is_alone(kind: Any, method: str) -> None:
    torch.manual_seed(0)
    rnn = AdaptiveRNN(kind(2 + 1, 6), 4, method).double()
    shaken(rnn.layer)
    parts = sequences(2)
    state: Any = torch.randn(1, len(parts), 6, dtype=DOUBLE)
    if kind is nn.LSTMCell:
        state = (state, state + 1)
    packed = pack_sequence(parts, enforce_sorted=False)
    calls: tuple[Any, ...] = rnn, rnn.run
    for call in calls:
        outputs, last, found = call(packed, state, price=PRICES)
        assert isinstance(outputs, PackedSequence)
        values, lengths = pad_packed_sequence(outputs)
        exits, _ = pad_packed_sequence(outputs._replace(data=found.exits))
        assert lengths.tolist() == list(LENGTHS)
        for row, part in enumerate(parts):
            begin = tuple(each[:, row] for each in state) if kind is nn.LSTMCell else state[:, row]
            due, end, alone = call(part, begin, price=PRICES[row : row + 1])
            length = len(part)
            torch.testing.assert_close(values[:length, row], due, rtol=1e-9, atol=1e-11)
            assert exits[:length, row].equal(alone.exits)
            ends = zip(last, end, strict=True) if kind is nn.LSTMCell else [(last, end)]
            for mine, its in ends:
                torch.testing.assert_close(mine[:, row], its, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_is_a_batch_of_one(batch_first: bool) -> None:
    torch.manual_seed(0)
    rnn = AdaptiveRNN(nn.GRUCell(2 + 1, 6), 4, batch_first=batch_first)
    like = nn.RNN(2, 6, batch_first=batch_first)
    sequence = torch.randn(5, 2)
    outputs, last, pondered = rnn(sequence, price=0.1)
    along = 0 if batch_first else 1
    batch, end, many = rnn(sequence.unsqueeze(along), price=0.1)
    assert outputs.equal(batch.squeeze(along))
    assert last.equal(end.squeeze(1))
    assert pondered.ponder_cost.equal(many.ponder_cost.squeeze(1))
    assert [value.shape for value in like(sequence)] == [outputs.shape, last.shape]
    packed = pack_sequence([sequence, sequence[:3]])
    assert rnn(packed, price=0.1)[0].data.shape == like(packed)[0].data.shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("length", [5, 8, 23, 40])
@pytest.mark.parametrize("keeps", [False, True])
def test_tokens_that_run_find_what_all_would(
    causal: bool, padded: bool, share: float, length: int, keeps: bool
) -> None:
    """Without gradients the queries of tokens that run lie side by side, in few places."""
    generator = seeded()
    draw: dict[str, Any] = {"generator": generator, "dtype": DOUBLE}
    block = TransformerBlock(8, 2, causal=causal).double()
    tokens, kept = torch.randn(2, 6, length, 8, **draw)
    active, ended = torch.rand(2, 6, length, generator=generator) < share
    padding = None
    if padded:
        padding = torch.arange(length) >= torch.tensor([[length], [1], [3], [length], [4], [2]])
        active = active & ~padding
    keys = torch.randn(6, length, 16, **draw) if keeps else None
    stale = active | ended if keeps else None
    arguments = (tokens, active, kept, keys, stale, padding)
    expected = block.advance(*arguments)
    with torch.no_grad():
        found = block.advance(*arguments)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class OfFirst(nn.Linear):
    """Classifies a sequence by its first token."""

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        return super().forward(tokens[:, 0])


@pytest.mark.parametrize("kind", ["words", "narrow tokens"])
def test_a_first_layer_may_change_the_width_of_padded_tokens(kind: str) -> None:
    """Words that are embedded, or tokens that are projected: each sequence is what it is alone."""
    torch.manual_seed(0)
    words = kind == "words"
    first: nn.Module = nn.Embedding(20, 8) if words else nn.Linear(3, 8)
    others = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
    stack = LayerStack([first, *others], 2, heads=[OfFirst(8, 2) for _ in range(3)])
    layer = AdaptiveComputation(stack).double().eval()
    lengths = [7, 2, 5, 1]
    padding = torch.arange(7) >= torch.tensor(lengths).unsqueeze(1)
    given = torch.randint(20, (4, 7), generator=seeded())
    tokens = given if words else torch.randn(4, 7, 3, generator=seeded(), dtype=DOUBLE)
    found = layer({"tokens": tokens, "padding": padding}, 0.1)
    ran = layer.run({"tokens": tokens, "padding": padding}, 0.1)
    for row, length in enumerate(lengths):
        alone = layer(tokens[row : row + 1, :length], 0.1)
        torch.testing.assert_close(found.outputs[row], alone.outputs[0])
        torch.testing.assert_close(ran.output[row], alone.output[0])
    own = AdaptiveComputation(LayerStack([first, *others], 8, per="token")).double()
    with pytest.raises(InputError, match="layer 0 must return a tensor of the shape"):
        own({"tokens": tokens, "padding": padding}, 0.1)
    halved = nn.Sequential(first, Halved())
    flat = AdaptiveComputation(LayerStack([halved, *others], 8)).double()
    with pytest.raises(InputError, match="layer 0 must keep the tokens"):
        flat({"tokens": tokens, "padding": padding}, 0.1)


class Halved(nn.Module):
    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        return tokens[:, ::2]
