"""Triton's kernels of T steps against autograd in float64."""

import pytest
import torch
from fused import DEVICE, fused_device
from torch import Tensor

from haltwise import InputError
from haltwise._core.tensors import log_rms
from haltwise._kernels import Coordinatewise, fused, lstm_sequence, reference_lstm_sequence

__all__ = ["fused_device"]
pytestmark = [
    pytest.mark.usefixtures("fused_device"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter's NumPy
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Float32 numbers in float64."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).double().to(DEVICE)


def relative_error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


class Steps:
    """T steps of an optimizer on B problems of D coordinates, and cotangents."""

    def __init__(
        self, sizes: tuple[int, int, int], size: int, layers: int, inputs: int, outputs: int
    ) -> None:
        problems, dim, steps = sizes
        fan_in = [inputs, *[size] * (layers - 1)]
        self.weights = [
            (normal(4 * size, n + size, seed=i) * (size + 3) ** -0.5).float().double()
            for i, n in enumerate(fan_in)
        ]
        self.biases = [(0.3 * normal(4 * size, seed=i)).float().double() for i in range(layers)]
        self.readout = (0.3 * normal(outputs, size)).float().double(), normal(outputs)
        # Of all sizes, below the features' threshold and zero as well.
        grads = normal(problems, steps, dim) * 10 ** (4 * normal(problems, steps, 1, seed=1))
        grads[:1, 0] = 0
        shape = problems, dim, layers, size
        self.given = grads.float().double(), normal(*shape).tanh().float().double(), normal(*shape)
        self.cotangents = (
            normal(problems, steps, dim, seed=2),
            normal(problems, steps, size, seed=3),
            normal(*shape, seed=4),
            normal(*shape, seed=5),
        )

    def backpropagate(self, dtype: torch.dtype, *, wants_state: bool = True) -> list[Tensor]:
        """Derivatives of the first state and of all weights."""
        weights, biases, (readout, level), (grads, *state), cotangents = (
            [value.to(dtype) for value in values]
            for values in (self.weights, self.biases, self.readout, self.given, self.cotangents)
        )
        optimizer = Coordinatewise(weights, biases, readout, level, 0.7)
        d_first, d_params = optimizer.backpropagate(
            *(grads, state[0], state[1], cotangents[0], cotangents[1]),
            *(cotangents[2], cotangents[3]),
            wants_state=wants_state,
        )
        return d_first + d_params


KINDS = [
    ((3, 7, 4), 20, 2, 4, 4),
    ((1, 33, 3), 33, 2, 4, 4),
    ((2, 3, 1), 4, 1, 2, 1),
    ((5, 1, 3), 10, 3, 2, 2),
    ((2, 9, 2), 20, 1, 4, 2),
    ((1, 2, 2), 64, 4, 2, 4),
]


@pytest.mark.parametrize(
    ("kind", "wants_state"), [*((kind, True) for kind in KINDS), (KINDS[0], False)]
)
def test_it_is_the_derivative(
    kind: tuple[tuple[int, int, int], int, int, int, int], wants_state: bool
) -> None:
    steps = Steps(*kind)
    found = steps.backpropagate(torch.float32, wants_state=wants_state)
    exact = steps.backpropagate(torch.float64, wants_state=wants_state)
    assert len(found) == len(exact)
    for one, other in zip(found, exact, strict=True):
        assert relative_error(one, other) < 2e-6


def test_weight_gradients_repeat_to_the_bit() -> None:
    steps = Steps(*KINDS[0])
    once, twice = (steps.backpropagate(torch.float32) for _ in range(2))
    assert all(map(torch.equal, once, twice))


def test_rows_may_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from haltwise._kernels.fused import sequences

    steps = Steps((3, 7, 2), 4, 2, 4, 4)
    exact = steps.backpropagate(torch.float64)
    # 8 rows at once: problems are cut, too.
    monkeypatch.setattr(sequences, "_scratch", lambda device: 1000)
    for one, other in zip(steps.backpropagate(torch.float32), exact, strict=True):
        assert relative_error(one, other) < 2e-6


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e30, 3e38])
def test_gradients_of_any_size(size: float) -> None:
    steps = Steps((3, 2, 2), 4, 1, 4, 4)
    grads = steps.given[0]
    grads[1] = size
    grads[2, :, 1] = size
    exact = steps.backpropagate(torch.float64)
    for one, other in zip(steps.backpropagate(torch.float32), exact, strict=True):
        assert relative_error(one, other) < 5e-6


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_no_number_stays_where_it_is(poison: float, alone: bool) -> None:
    """In its coordinate; or in its problem, of which all coordinates read the mean."""
    kind = (2, 1) if alone else (4, 4)
    clean, poisoned = (Steps((3, 2, 2), 16, 2, *kind) for _ in range(2))
    poisoned.given[0][1, 0, 1] = poison
    before, after = (steps.backpropagate(torch.float32)[:2] for steps in (clean, poisoned))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[0::2], other[0::2])
        assert other[1, 1].isnan().all()
        assert torch.equal(one[1, 0], other[1, 0]) if alone else other[1, 0].isnan().all()


SEQUENCES = [(17, 46, 32, 1, 4), (5, 3, 20, 2, 3), (1, 100, 7, 3, 2), (2, 1, 33, 2, 1)]


@pytest.mark.parametrize("sizes", SEQUENCES)
def test_sequences_and_their_derivatives(sizes: tuple[int, ...]) -> None:
    rows, inputs, size, layers, steps = sizes
    state = [normal(rows, layers, size).tanh(), normal(rows, layers, size)]
    weights = [
        normal(4 * size, (size if layer else inputs) + size) * (size + inputs) ** -0.5
        for layer in range(layers)
    ]
    biases = [0.3 * normal(4 * size, seed=layer) for layer in range(layers)]
    given = normal(steps, rows, inputs)
    cotangents = [normal(steps, rows, size), *(normal(rows, layers, size, seed=i) for i in (1, 2))]
    solved = []
    for dtype, function in (
        (torch.float32, lstm_sequence),
        (torch.float64, reference_lstm_sequence),
    ):
        leaves = [value.float().to(dtype).requires_grad_() for value in (*state, *weights, *biases)]
        own = leaves[2 : 2 + layers], leaves[2 + layers :]
        results = function(given.to(dtype), leaves[0], leaves[1], *own)
        values = [value.to(dtype) for value in cotangents]
        solved.append([*results, *torch.autograd.grad(results, leaves, values)])
    for one, other in zip(*solved, strict=True):
        assert relative_error(one.detach(), other.detach()) < 2e-6


def test_without_a_graph_a_sequence_is_the_same() -> None:
    given, state = normal(3, 5, 4).float(), normal(5, 1, 20).float()
    weight, bias = normal(80, 24).float() / 5, normal(80).float()
    found = lstm_sequence(given, state, state, [weight.requires_grad_()], [bias])
    with torch.no_grad():
        same = lstm_sequence(given, state, state, [weight], [bias])
    assert all(map(torch.equal, found, same))


def test_there_may_be_no_rows() -> None:
    steps = Steps((0, 3, 2), 4, 1, 2, 1)
    of_state, *of_params = steps.backpropagate(torch.float32)
    assert of_state.shape == (0, 3, 1, 4)
    assert not any(value.any() for value in of_params)


def test_what_does_not_fit_is_refused() -> None:
    steps = Steps((2, 3, 2), 4, 1, 2, 1)
    steps.cotangents = steps.cotangents[0][:1], *steps.cotangents[1:]
    with pytest.raises(InputError, match="the updates' derivative has the shape"):
        steps.backpropagate(torch.float32)
    weight, state = normal(16, 6).float(), normal(5, 1, 4).float()
    with pytest.raises(InputError, match="the inputs has the shape"):
        lstm_sequence(normal(3, 5, 3).float(), state, state, [weight], [weight[:, 0]])
    with torch.no_grad(), pytest.raises(InputError, match="every layer needs"):
        lstm_sequence(normal(3, 5, 2).float(), state, state, [weight], [])
    with pytest.raises(InputError, match="the weights are"):
        lstm_sequence(normal(3, 5, 2).float(), state.double(), state, [weight], [weight[:, 0]])


@pytest.mark.parametrize("dim", [1, 2, 10, 300])
def test_pooled_gradients(dim: int) -> None:
    from haltwise._kernels.fused.signals import pool

    grads = normal(40, dim) * torch.exp(20 * normal(40, 1))
    grads[3], grads[5, 0], grads[6], grads[7, 0] = 0, torch.nan, 1e38, torch.inf
    mean, inverse = pool(grads.float().view(4, 10, dim)).view(40, 2).double().unbind(1)
    exact = grads.float().double()
    size = torch.exp(-log_rms(exact).clamp_min(-80))
    finite = exact.isfinite().all(1)
    assert torch.equal(inverse.isnan(), ~finite)
    error = (inverse / size - 1)[finite].abs().max()
    assert error < 1e-6
    error = ((mean - exact.mean(1)).abs() / exact.abs().mean(1).clamp_min(1e-30))[finite].max()
    assert error < 1e-6


def test_the_kernels_serve_what_they_can() -> None:
    assert fused.serves(DEVICE, torch.float32, 64, 4)
    assert not fused.serves(DEVICE, torch.float32, 65, 1)
    assert not fused.serves(DEVICE, torch.float32, 64, 5)
    assert not fused.serves(DEVICE, torch.float64, 20, 2)
