"""The compiled LSTM against its reference, and the reference against `nn.LSTMCell`."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kernel_cases import DTYPES, assert_close, needs_library
from torch import Tensor, nn

from haltwise import InputError, _kernels
from haltwise._kernels import fused, lstm, native, reference_lstm_sequence
from haltwise.cli import cli
from haltwise.rollout import step_graphs


class Problem:
    """Random arguments of a sequence call."""

    def __init__(
        self,
        rows: int,
        fan_in: int = 2,
        size: int = 20,
        layers: int = 2,
        steps: int = 5,
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(rows + 7 * size + 31 * layers + 97 * steps)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.inputs = normal(steps, rows, fan_in) * scale
        self.hidden, self.cell = normal(rows, layers, size).tanh(), normal(rows, layers, size)
        self.weights = [
            normal(4 * size, (size if layer else fan_in) + size) * (size + 3) ** -0.5
            for layer in range(layers)
        ]
        self.biases = [normal(4 * size) * 0.3 for _ in range(layers)]
        self.cotangents = [
            normal(steps, rows, size),
            normal(rows, layers, size),
            normal(rows, layers, size),
        ]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        return self.inputs, self.hidden, self.cell, self.weights, self.biases

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.cell, *self.weights, *self.biases]

    def solve(
        self, function: Callable[..., tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Results and the leaves' gradients."""
        for leaf in self.leaves:
            leaf.requires_grad_()
        results = function(*self.arguments)
        grads = torch.autograd.grad(results, self.leaves, self.cotangents)
        return [result.detach() for result in results], list(grads)


def exact_solution(
    problem: Problem, function: Callable[..., Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """The reference in float64 arithmetic, rounded to the problem's type at the end."""
    dtype = problem.inputs.dtype
    exact = Problem.__new__(Problem)
    exact.inputs, exact.hidden, exact.cell = (
        tensor.detach().double() for tensor in (problem.inputs, problem.hidden, problem.cell)
    )
    exact.weights = [weight.detach().double() for weight in problem.weights]
    exact.biases = [bias.detach().double() for bias in problem.biases]
    exact.cotangents = [cotangent.double() for cotangent in problem.cotangents]
    results, grads = exact.solve(function)
    return [result.to(dtype) for result in results], [grad.to(dtype) for grad in grads]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 65])
def test_pytorchs_own_lstm_equals_the_reference(rows: int, steps: int, layers: int) -> None:
    """What CUDA tensors go to (cuDNN there) runs on the CPU as well."""
    problem = Problem(rows, 3, 5, layers, steps, torch.float64)
    found = problem.solve(lstm.device_lstm_sequence)
    expected = problem.solve(reference_lstm_sequence)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    problem.inputs.requires_grad_()
    gradients = [
        torch.autograd.grad(function(*problem.arguments), problem.inputs, problem.cotangents)
        for function in (lstm.device_lstm_sequence, reference_lstm_sequence)
    ]
    assert_close(*gradients)
    with torch.no_grad():
        step = problem.inputs[:1], *problem.arguments[1:]
        assert_close(lstm.device_lstm_sequence(*step), reference_lstm_sequence(*step))


def test_the_reference_is_a_stack_of_lstm_cells() -> None:
    problem = Problem(9, fan_in=3, size=5, layers=2, steps=4, dtype=torch.float64)
    cells = []
    for weight, bias in zip(problem.weights, problem.biases, strict=True):
        fan_in = weight.shape[1] - 5
        cell = nn.LSTMCell(fan_in, 5, dtype=torch.float64)
        with torch.no_grad():
            cell.weight_ih.copy_(weight[:, :fan_in])
            cell.weight_hh.copy_(weight[:, fan_in:])
            cell.bias_ih.copy_(bias)
            cell.bias_hh.zero_()
        cells.append(cell)
    hidden, memory = list(problem.hidden.unbind(1)), list(problem.cell.unbind(1))
    outputs = []
    with torch.no_grad():
        for value in problem.inputs:
            for layer, cell in enumerate(cells):
                below = hidden[layer - 1] if layer else value
                hidden[layer], memory[layer] = cell(below, (hidden[layer], memory[layer]))
            outputs.append(hidden[-1])
    expected = [torch.stack(outputs), torch.stack(hidden, 1), torch.stack(memory, 1)]
    assert_close(reference_lstm_sequence(*problem.arguments), expected)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 20, 33])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_kernel_agrees_with_the_reference(dtype: torch.dtype, size: int, layers: int) -> None:
    for rows, fan_in, steps in itertools.product((1, 64, 77), (1, 2, 4), (1, 5, 40)):
        problem = Problem(rows, fan_in, size, layers, steps, dtype)
        found = problem.solve(lstm.lstm_sequence)
        # Over 40 steps the reference's own rounding in float32 nears the tolerance.
        expected = exact_solution(problem, reference_lstm_sequence)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs)
        with torch.no_grad():
            others = problem.arguments[1:]
            expected_step = reference_lstm_sequence(problem.inputs[:1], *others)[1:]
            assert_close(lstm.lstm_step(problem.inputs[0], *others), expected_step)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_agrees(dtype: torch.dtype, instruction_set: str) -> None:
    assert _kernels.implementation() == f"compiled kernel ({instruction_set})"
    for rows, size in ((1, 3), (77, 20), (700, 5)):
        problem = Problem(rows, 2, size, 2, 20, dtype)
        found = problem.solve(lstm.lstm_sequence)
        for ours, exact in zip(
            found, exact_solution(problem, reference_lstm_sequence), strict=True
        ):
            assert_close(ours, exact)


@needs_library
def test_gradcheck() -> None:
    problem = Problem(3, fan_in=2, size=3, layers=2, steps=4, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in problem.leaves]

    def function(hidden: Tensor, cell: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
        return lstm.lstm_sequence(problem.inputs, hidden, cell, [*params[:2]], [*params[2:]])

    assert torch.autograd.gradcheck(function, leaves)


@needs_library
@pytest.mark.parametrize("which", range(3))
def test_gradients_of_one_result_and_of_parameters_alone(which: int) -> None:
    problem = Problem(70, dtype=torch.float64)
    params = [tensor.requires_grad_() for tensor in (*problem.weights, *problem.biases)]
    grads = [
        torch.autograd.grad(function(*problem.arguments)[which].square().sum(), params)
        for function in (lstm.lstm_sequence, reference_lstm_sequence)
    ]
    assert_close(*grads)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_poisoned_row_leaves_the_others_bit_identical(dtype: torch.dtype, poison: float) -> None:
    clean, poisoned = Problem(70, dtype=dtype), Problem(70, dtype=dtype)
    poisoned.inputs[2, 11] = poison
    others = torch.arange(70) != 11
    before, after = clean.solve(lstm.lstm_sequence), poisoned.solve(lstm.lstm_sequence)
    expected = poisoned.solve(reference_lstm_sequence)[0]
    for one, other, plain in zip(before[0], after[0], expected, strict=True):
        dim = one.dim() - 2 if one is before[0][0] else 0
        index = others.nonzero().squeeze(1)
        assert torch.equal(one.index_select(dim, index), other.index_select(dim, index))
        assert torch.equal(other.isnan(), plain.isnan())
    for one, other in zip(before[1][:2], after[1][:2], strict=True):
        assert torch.equal(one[others], other[others])


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gate_inputs_stay_finite_and_right(dtype: torch.dtype) -> None:
    problem = Problem(70, dtype=dtype, scale=1e4)
    results, grads = problem.solve(lstm.lstm_sequence)
    assert all(tensor.isfinite().all() for tensor in (*results, *grads))
    expected, expected_grads = exact_solution(problem, reference_lstm_sequence)
    assert_close(results, expected)
    if dtype == torch.float64:  # in float32, 1 - tanh^2 of a saturated cell is all rounding
        assert_close(grads, expected_grads)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_are_accurate_to_a_few_units_in_the_last_place(dtype: torch.dtype) -> None:
    points = torch.cat(
        (
            torch.linspace(-30, 30, 20001, dtype=torch.float64),
            torch.logspace(-30, 1, 2001, dtype=torch.float64),
            -torch.logspace(-30, 1, 2001, dtype=torch.float64),
        )
    ).to(dtype)
    # One unit, the input wired to one gate: c' = 1 sigmoid(x), or tanh(x) to within sigmoid(90).
    eps = torch.finfo(dtype).eps
    hidden = torch.zeros(len(points), 1, 1, dtype=dtype)
    for gate, function in ((1, torch.sigmoid), (2, torch.tanh)):
        weight = torch.zeros(4, 2, dtype=dtype)
        weight[gate, 0] = 1
        bias = torch.zeros(4, dtype=dtype)
        if gate == 2:
            bias[0] = 90
        cell = torch.ones_like(hidden) if gate == 1 else hidden
        _, found = lstm.lstm_step(points.unsqueeze(1), hidden, cell, [weight], [bias])
        exact = function(points.double())
        error = (found.flatten().double() - exact).abs() / exact.abs()
        assert error.max() <= 8 * eps


@needs_library
def test_arguments_are_left_as_they_were_and_results_repeat_bit_for_bit() -> None:
    problem = Problem(1100, steps=6)
    tensors = [problem.inputs, *problem.leaves, *problem.cotangents]
    copies = [tensor.clone() for tensor in tensors]
    first, second = problem.solve(lstm.lstm_sequence), problem.solve(lstm.lstm_sequence)
    lstm.lstm_step(problem.inputs[0], *problem.arguments[1:])
    assert all(torch.equal(*pair) for pair in zip(tensors, copies, strict=True))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@needs_library
@pytest.mark.usefixtures("one_thread")
def test_the_number_of_threads_changes_no_bit() -> None:
    problem = Problem(1700, size=6, steps=6)
    alone = problem.solve(lstm.lstm_sequence)
    torch.set_num_threads(3)
    together = problem.solve(lstm.lstm_sequence)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@needs_library
def test_steps_make_a_sequence() -> None:
    problem = Problem(70, steps=7)
    hidden, cell = problem.hidden, problem.cell
    for value in problem.inputs:
        hidden, cell = lstm.lstm_step(value, hidden, cell, problem.weights, problem.biases)
    outputs, last_hidden, last_cell = lstm.lstm_sequence(*problem.arguments)
    assert torch.equal(hidden, last_hidden)
    assert torch.equal(cell, last_cell)
    assert torch.equal(outputs[-1], hidden[:, -1])


@needs_library
def test_the_caller_keeps_its_subnormal_numbers() -> None:
    problem = Problem(70)
    problem.solve(lstm.lstm_sequence)
    assert (torch.tensor([1e-30]) * 1e-10).item() > 0


@needs_library
def test_strided_arguments_serve() -> None:
    problem = Problem(70, dtype=torch.float64)
    expected = problem.solve(lstm.lstm_sequence)
    problem.inputs = problem.inputs.transpose(0, 1).contiguous().transpose(0, 1)
    problem.hidden = problem.hidden.detach().repeat_interleave(2, dim=0)[::2]
    problem.weights = [weight.detach().T.contiguous().T for weight in problem.weights]
    problem.cotangents[0] = problem.cotangents[0][:, :1].expand(-1, 70, -1)
    found = problem.solve(lstm.lstm_sequence)
    assert_close(found[0], expected[0])
    assert_close(found[1], problem.solve(reference_lstm_sequence)[1])


@needs_library
def test_the_graph_holds_no_more_than_the_arguments() -> None:
    problem = Problem(70, steps=30)
    for leaf in problem.leaves:
        leaf.requires_grad_()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lstm.lstm_sequence(*problem.arguments)
    assert set(kept) <= {tensor.data_ptr() for tensor in (problem.inputs, *problem.leaves)}


@needs_library
def test_no_rows() -> None:
    problem = Problem(0, dtype=torch.float64)
    results, grads = problem.solve(lstm.lstm_sequence)
    assert [result.shape for result in results] == [(5, 0, 20), (0, 2, 20), (0, 2, 20)]
    assert not any(grad.any() for grad in grads)


def test_the_environment_forces_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALTWISE_KERNEL", "plain")
    assert not _kernels.available()
    assert _kernels.implementation() == "plain PyTorch (HALTWISE_KERNEL=plain)"
    problem = Problem(5)
    for found, expected in zip(
        problem.solve(lstm.lstm_sequence), problem.solve(reference_lstm_sequence), strict=True
    ):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    others = problem.arguments[1:]
    last = reference_lstm_sequence(problem.inputs[:1], *others)[1:]
    assert all(map(torch.equal, lstm.lstm_step(problem.inputs[0], *others), last))


@pytest.mark.parametrize("value", ["foo", "plan", "0", "plain triton", "native"])
def test_values_of_the_environment_that_mean_nothing_are_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALTWISE_KERNEL", value)
    problem = Problem(5)
    readers: list[Callable[[], object]] = [
        _kernels.available,
        _kernels.implementation,
        lambda: fused.implementation(torch.device("cpu")),
        lambda: problem.solve(lstm.lstm_sequence),
        step_graphs._modes,
    ]
    for read in readers:
        with pytest.raises(InputError, match=f"HALTWISE_KERNEL is {value!r}.*'plain'.*'triton'"):
            read()
    found = CliRunner().invoke(cli, ["info"])
    assert found.exit_code != 0
    assert isinstance(found.exception, InputError) or "HALTWISE_KERNEL is" in found.output


@pytest.mark.parametrize("value", ["", " ", "plain", "PLAIN ", "triton", "Triton"])
def test_values_of_the_environment_that_mean_something_are_taken(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALTWISE_KERNEL", value)
    assert ("HALTWISE_KERNEL=plain" in _kernels.implementation()) == ("plain" in value.lower())


def test_without_the_library_the_reference_runs_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HALTWISE_KERNEL", raising=False)
    monkeypatch.setattr(native, "_load", lambda: "the compiled kernel is not installed")
    assert not _kernels.available()
    assert _kernels.implementation() == "plain PyTorch (the compiled kernel is not installed)"
    problem = Problem(5)
    assert_close(
        lstm.lstm_sequence(*problem.arguments), reference_lstm_sequence(*problem.arguments)
    )


def test_inputs_that_require_a_gradient_get_it() -> None:
    problem = Problem(5, dtype=torch.float64)
    problem.inputs.requires_grad_()
    grads = [
        torch.autograd.grad(function(*problem.arguments)[0].square().sum(), problem.inputs)
        for function in (lstm.lstm_sequence, reference_lstm_sequence)
    ]
    assert_close(*grads)
