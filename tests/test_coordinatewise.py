"""The coordinatewise optimizer: fused steps and gradients against autograd on the reference."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_cases import DTYPES, assert_close, needs_library
from torch import Tensor

from haltwise import _kernels
from haltwise._core.tensors import log_rms
from haltwise._kernels import (
    Coordinatewise,
    coordinatewise,
    lstm,
    native,
    one_thread,
    reference_lstm_sequence,
)

IMPLEMENTATIONS = ("compiled", "plain", "device")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to run: the compiled kernel, the reference, and PyTorch's own LSTM as on CUDA."""
    name: str = request.param
    if name == "compiled":
        if not _kernels.available():
            pytest.skip(f"runs {_kernels.implementation()}")
        return name
    monkeypatch.setenv("HALTWISE_KERNEL", "plain")
    monkeypatch.setattr(coordinatewise, "_MAX_ROW_STEPS", 30)  # most cases then take several turns
    if name == "device":
        monkeypatch.setattr(lstm, "reference_lstm_sequence", lstm.device_lstm_sequence)
    return name


class Steps:
    """Random arguments of T steps and of their gradient."""

    def __init__(
        self, sizes: tuple[int, int, int], kind: tuple[int, int, int, int], dtype: torch.dtype
    ) -> None:
        problems, dim, steps = sizes
        layers, size, num_inputs, num_outputs = kind
        generator = torch.Generator().manual_seed(problems + 7 * dim + 31 * steps + size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        fan_in = [num_inputs, *[size] * (layers - 1)]
        self.optimizer = Coordinatewise(
            [normal(4 * size, width + size) * (size + 3) ** -0.5 for width in fan_in],
            [0.3 * normal(4 * size) for _ in range(layers)],
            normal(num_outputs, size) * size**-0.5,
            0.3 * normal(num_outputs),
            0.7,
        )
        # Of all sizes, below the features' threshold and zero as well.
        self.grads = normal(problems, steps, dim) * 10 ** (4 * normal(problems, steps, 1))
        self.grads[0, 0] = 0
        shape = (problems, dim, layers, size)
        self.state = normal(*shape).tanh(), normal(*shape)
        self.cotangents = (
            normal(problems, steps, dim),
            normal(problems, steps, size),
            normal(*shape),
            normal(*shape),
        )

    @property
    def pooled(self) -> tuple[Tensor, Tensor]:
        return self.grads.mean(-1), log_rms(self.grads)

    def run(self, *, in_place: bool = False) -> list[Tensor]:
        """Updates, means and states of all steps; every second step as of a chunk."""
        (hidden, cell), found = (value.clone() for value in self.state), []
        for step, grad in enumerate(self.grads.unbind(1)):
            mean, size = (value[:, step] for value in self.pooled)
            pooled = (mean, size) if step % 2 else None
            update, top, hidden, cell = self.optimizer.step(
                grad, hidden, cell, pooled, in_place=in_place
            )
            found += [update, top, hidden.clone(), cell.clone()]
        return found

    def backpropagate(
        self, kept: tuple[bool, bool] = (True, True), *, wants_state: bool = True
    ) -> list[Tensor]:
        """Gradients of the state, if wanted, and of the weights; without states not `kept`."""
        states = [
            value if keep else None for value, keep in zip(self.cotangents[2:], kept, strict=True)
        ]
        d_updates, d_sums = self.cotangents[:2]
        d_means = d_sums * self.grads.shape[-1]
        of_state, params = self.optimizer.backpropagate(
            self.grads, *self.state, d_updates, d_means, *states, wants_state=wants_state
        )
        assert len(of_state) == 2 * wants_state
        return of_state + params

    def oracle(self, kept: tuple[bool, bool] = (True, True)) -> tuple[list[Tensor], list[Tensor]]:
        """`run` and `backpropagate` step by step in float64, by autograd on the reference."""
        own, grads = self.optimizer, self.grads.double()
        layers = [
            *zip(own.weights, own.biases, strict=True),
            (own.readout_weight, own.readout_bias),
        ]
        params = [value.double().requires_grad_() for layer in layers for value in layer]
        exact = Coordinatewise(
            params[:-2:2], params[1:-2:2], params[-2], params[-1], scale=own.scale
        )
        leaves = [value.double().requires_grad_() for value in self.state]
        hidden, cell = leaves
        found, tops = [], []
        for grad in grads.unbind(1):
            inputs = exact.inputs(grad).flatten(0, 1)
            state = hidden.flatten(0, 1), cell.flatten(0, 1)
            _, *last = reference_lstm_sequence(
                inputs.unsqueeze(0), *state, exact.weights, exact.biases
            )
            hidden, cell = (value.view(hidden.shape) for value in last)
            top = hidden[..., -1, :]
            found += [exact.read_out(top, grad), top.mean(1), hidden, cell]
            tops.append(top.sum(1))
        roots = [torch.stack(found[::4], 1), torch.stack(tops, 1), hidden, cell]
        of_last = [value * keep for value, keep in zip(self.cotangents[2:], kept, strict=True)]
        cotangents = [value.double() for value in (*self.cotangents[:2], *of_last)]
        return found, list(torch.autograd.grad(roots, [*leaves, *params], cotangents))


CASES: tuple[tuple[tuple[int, int, int], tuple[int, int, int, int]], ...] = (
    ((1, 1, 1), (1, 1, 2, 2)),
    ((3, 5, 4), (2, 20, 4, 4)),
    ((40, 2, 7), (2, 20, 4, 4)),
    ((5, 1, 4), (2, 7, 4, 4)),
    ((1, 700, 3), (2, 20, 4, 4)),
    ((7, 100, 2), (3, 6, 2, 4)),
    ((2, 33, 5), (1, 9, 4, 2)),
    ((4, 50, 6), (2, 9, 2, 1)),
)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "kind"), CASES)
def test_steps_and_their_gradient_agree_with_autograd(
    sizes: tuple[int, int, int], kind: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    steps = Steps(sizes, kind, dtype)
    found = steps.run()
    assert all(map(torch.equal, steps.run(in_place=True), found))
    expected, expected_grads = steps.oracle()
    assert_close(found, expected, in_float64=True)
    assert_close(steps.backpropagate(), expected_grads, in_float64=True)
    assert all(map(torch.equal, steps.backpropagate(wants_state=False), steps.backpropagate()[2:]))
    for kept in ((False, False), (True, False), (False, True)):
        assert_close(steps.backpropagate(kept), steps.oracle(kept)[1], in_float64=True)


@pytest.mark.usefixtures("implementation")
def test_slices_of_larger_tensors_serve() -> None:
    """As a rule of groups passes them, also for groups of a single coordinate."""
    for dim in (1, 3):
        steps = Steps((4, dim, 5), (2, 6, 4, 4), torch.float64)
        found, expected = steps.run(), steps.backpropagate()
        wide = torch.cat([steps.grads] * 2, -1)
        steps.grads = wide[..., dim:]
        steps.state = tuple(torch.cat([v] * 2, 1)[:, dim:] for v in steps.state)  # type: ignore[assignment]
        d_updates, *others = steps.cotangents
        steps.cotangents = (torch.cat([d_updates] * 2, -1)[..., dim:], *others)  # type: ignore[assignment]
        assert not steps.grads.is_contiguous()
        assert_close(steps.run(), found)
        assert_close(steps.backpropagate(), expected)


@pytest.mark.usefixtures("implementation")
def test_no_problems() -> None:
    steps = Steps((1, 3, 4), (2, 6, 4, 4), torch.float64)
    steps.grads, steps.state = steps.grads[:0], (steps.state[0][:0], steps.state[1][:0])
    steps.cotangents = tuple(value[:0] for value in steps.cotangents)  # type: ignore[assignment]
    update, top, hidden, cell = steps.run()[:4]
    assert update.shape == (0, 3)
    assert top.shape == (0, 6)
    assert hidden.shape == cell.shape == (0, 3, 2, 6)
    assert not any(grad.any() for grad in steps.backpropagate())


@needs_library
@pytest.mark.usefixtures("one_thread")
def test_steps_are_the_same_on_any_number_of_threads() -> None:
    steps = Steps((1, 9001, 2), (2, 6, 4, 4), torch.float32)
    alone = [*steps.run(), *steps.backpropagate()]
    torch.set_num_threads(3)
    assert all(map(torch.equal, [*steps.run(), *steps.backpropagate()], alone))


@needs_library
@pytest.mark.usefixtures("one_thread")
def test_one_thread_is_for_pytorch_alone_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    pool = native._pool

    def watched(threads: int) -> ThreadPoolExecutor:
        asked.append(threads)
        return pool(threads)

    @one_thread()
    def fail() -> None:
        assert torch.get_num_threads() == 1
        steps.optimizer.step(steps.grads[:, 0], *steps.state)
        raise ZeroDivisionError

    monkeypatch.setattr(native, "_pool", watched)
    steps = Steps((1, 9001, 1), (1, 3, 4, 4), torch.float32)
    torch.set_num_threads(3)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 3
    assert asked == [2, 2]


@needs_library
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_problem_is_not_finite_and_leaves_the_others_alone(poison: float) -> None:
    steps = Steps((5, 20, 3), (2, 20, 4, 4), torch.float64)
    before = steps.run()
    steps.grads[1, 0, 3] = poison
    after = steps.run()
    others = torch.tensor([0, 2, 3, 4])
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[others], other[others])
    assert not after[0][1].isfinite().any()


@needs_library
def test_the_weights_of_prepared_steps_may_change_and_be_replaced() -> None:
    """Changes in place count; data that a parameter is given later do not, and harm nothing."""
    steps = Steps((3, 5, 1), (2, 6, 4, 4), torch.float64)
    own, arguments = steps.optimizer.prepare(), (steps.grads[:, 0] + 1, *steps.state)
    before = own.step(*arguments)[0]
    with torch.no_grad():
        own.readout_weight.mul_(2)
    changed = own.step(*arguments)[0]
    assert not torch.equal(changed, before)
    assert torch.equal(changed, steps.optimizer.step(*arguments)[0])
    for weight in own.weights:
        weight.data = torch.full_like(weight, torch.nan)
    assert torch.equal(own.step(*arguments)[0], changed)


def test_the_reference_equals_its_own_steps() -> None:
    steps = Steps((2, 3, 4), (2, 6, 4, 4), torch.float64)
    own = steps.optimizer
    inputs = own.inputs(steps.grads).transpose(0, 1).flatten(1, 2)
    first = steps.state[0].flatten(0, 1), steps.state[1].flatten(0, 1)
    outputs, *last = reference_lstm_sequence(inputs, *first, own.weights, own.biases)
    state = first
    for value, output in zip(inputs, outputs, strict=True):
        _, hidden, cell = reference_lstm_sequence(
            value.unsqueeze(0), *state, own.weights, own.biases
        )
        state = hidden, cell
        assert torch.equal(output, state[0][:, -1])
    assert all(map(torch.equal, state, last))
