"""The compiled head of a halter against its twin in plain PyTorch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from draws import DOUBLE, randn
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DTYPES, assert_close, needs_library
from torch import Tensor

from haltwise import InputError
from haltwise._kernels import Head

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Shape:
    """B, T, F, R, units of the memory and of hidden layers, K."""

    rows: int = 5
    steps: int = 4
    features: int = 3
    readouts: int = 2
    memory: int = 6
    width: int = 5
    outputs: int = 3


class Problem:
    """A head with random weights, what it reads, and derivatives of its outputs."""

    def __init__(self, shape: Shape, dtype: torch.dtype = DOUBLE, scale: float = 1.0) -> None:
        s, self.dtype = shape, dtype
        inputs, width = s.features + s.readouts + s.memory, s.width
        sizes = [inputs, width, width, s.outputs] if width else [inputs, s.outputs]
        shapes = [(4 * s.memory, inputs), (4 * s.memory,)] if s.memory else []
        for fan_in, fan_out in itertools.pairwise(sizes):
            shapes += [(fan_out, fan_in), (fan_out,)]
        self.remembers = s.memory > 0
        self.params = [
            randn(*size, seed=10 + i) / (size[-1] ** 0.5) for i, size in enumerate(shapes)
        ]
        self.features = scale * randn(s.rows, s.steps, s.features, seed=2)
        self.readouts = scale * randn(s.rows, s.steps, s.readouts, seed=3)
        self.d_outputs = randn(s.rows, s.steps, s.outputs, seed=4)

    def head(self, dtype: torch.dtype | None = None) -> Head:
        params = [value.to(dtype or self.dtype).requires_grad_() for value in self.params]
        first = 2 if self.remembers else 0
        memory = (params[0], params[1]) if self.remembers else None
        return Head(memory, params[first::2], params[first + 1 :: 2])

    def solve(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Outputs, and derivatives of read-outs and parameters."""
        dtype = dtype or self.dtype
        rounded = [v.to(self.dtype).to(dtype) for v in (self.features, self.readouts)]
        given, head = [value.detach() for value in rounded], self.head(dtype)
        given[1].requires_grad_()
        outputs = head.sequence(*given)
        leaves = [given[1], *(head.memory or ()), *head.weights, *head.biases]
        d_outputs = self.d_outputs.to(self.dtype).to(dtype)
        return [outputs.detach(), *torch.autograd.grad(outputs, leaves, d_outputs)]

    def solve_plainly(self) -> list[Tensor]:
        """In float64, by PyTorch's operations."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HALTWISE_KERNEL", "plain")
            rounded = Problem.__new__(Problem)
            rounded.__dict__ |= self.__dict__
            rounded.params = [value.to(self.dtype).to(DOUBLE) for value in self.params]
            return rounded.solve(DOUBLE)


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


shapes = st.builds(
    Shape,
    rows=st.sampled_from((0, 1, 2, 31, 64, 65, 130)),
    steps=st.sampled_from((1, 2, 7, 8, 9, 17)),
    features=st.integers(1, 6),
    readouts=st.integers(0, 5),
    memory=st.integers(0, 9),
    width=st.integers(0, 9),
    outputs=st.integers(1, 6),
)


@needs_library
@given(shape=shapes, dtype=st.sampled_from(DTYPES))
def test_outputs_and_derivatives_are_those_of_the_twin(shape: Shape, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype)
    assert_close(problem.solve(), problem.solve_plainly(), in_float64=True)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("instruction_set")
def test_every_instruction_set_agrees(dtype: torch.dtype) -> None:
    for shape in (Shape(77, 20, 25, 20, 32, 64), Shape(1, 3), Shape(700, 2, width=0, memory=0)):
        problem = Problem(shape, dtype)
        assert_close(problem.solve(), problem.solve_plainly(), in_float64=True)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_units_stay_finite_and_right(dtype: torch.dtype) -> None:
    problem = Problem(Shape(70), dtype, scale=1e4)
    found = problem.solve()
    assert all(value.isfinite().all() for value in found)
    assert_close(found[:1], problem.solve_plainly()[:1], in_float64=True)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["features", "readouts"])
def test_a_poisoned_item_leaves_the_others_bit_identical(
    where: str, poison: float, dtype: torch.dtype
) -> None:
    clean, poisoned = (Problem(Shape(70, 6), dtype) for _ in range(2))
    getattr(poisoned, where)[11, 2] = poison
    others = torch.arange(70) != 11
    before, after = clean.solve(), poisoned.solve()
    for one, other in zip(before[:2], after[:2], strict=True):
        assert torch.equal(one[others], other[others])
    assert torch.equal(after[0][11, :2], before[0][11, :2])
    assert after[0][11, 2:].isnan().any()


@needs_library
@pytest.mark.usefixtures("one_thread")
def test_the_number_of_threads_changes_no_bit() -> None:
    problem = Problem(Shape(1700, 6), torch.float32)
    alone = problem.solve()
    torch.set_num_threads(3)
    assert_equal(problem.solve(), alone)


@needs_library
@pytest.mark.parametrize("memory", [0, 6])
@pytest.mark.parametrize("prepared", [False, True])
def test_steps_make_a_sequence(memory: int, prepared: bool) -> None:
    problem = Problem(Shape(70, 7, memory=memory), torch.float32)
    head = problem.head()
    features, readouts = problem.features.float(), problem.readouts.float()
    expected = head.sequence(features, readouts).detach()
    if prepared:
        head = head.prepare()
    zeros = torch.zeros(70, 1, memory)
    state = (zeros, zeros) if memory else None
    for step in range(7):
        outputs, state = head.step(features[:, step], readouts[:, step], state)
        assert torch.equal(outputs, expected[:, step])


@needs_library
def test_a_graph_may_be_run_twice_and_changes_no_argument() -> None:
    problem = Problem(Shape(70, 9), torch.float32)
    head, given = problem.head(), [problem.features.float(), problem.readouts.float()]
    given[1].requires_grad_()
    tensors = [*given, *(head.memory or ()), *head.weights, *head.biases]
    copies = [value.detach().clone() for value in tensors]
    outputs = head.sequence(*given)
    first, second = (
        torch.autograd.grad(outputs, tensors[1:], problem.d_outputs.float(), retain_graph=True)
        for _ in range(2)
    )
    assert_equal(first, second)
    assert_equal([value.detach() for value in tensors], copies)
    head.weights[0].detach().add_(1)  # which autograd sees
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(outputs, tensors[1:], problem.d_outputs.float())


@needs_library
@pytest.mark.parametrize("last", [0, 1, 8, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_behind_the_last_derivative_change_nothing(last: int, dtype: torch.dtype) -> None:
    problem = Problem(Shape(70, 20), dtype)
    problem.d_outputs[:, last:] = 0
    problem.d_outputs[3, :last] = 0
    found = problem.solve()
    assert_close(found, problem.solve_plainly(), in_float64=True)
    problem.features[:, last:] = NAN
    again = problem.solve()
    assert_equal(again[1:], found[1:])
    assert torch.equal(again[0][:, :last], found[0][:, :last])
    assert again[0][:, last:].isnan().all()


@needs_library
def test_the_graph_holds_no_more_than_the_arguments() -> None:
    problem = Problem(Shape(70, 30))
    head, readouts = problem.head(), problem.readouts.requires_grad_()
    kept: list[int] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        head.sequence(problem.features, readouts)
    given = (problem.features, readouts, *(head.memory or ()), *head.weights, *head.biases)
    assert kept
    assert set(kept) <= {value.data_ptr() for value in given}


def test_features_that_require_a_gradient_get_it() -> None:
    problem = Problem(Shape(memory=0))
    problem.features.requires_grad_()
    outputs = problem.head().sequence(problem.features, problem.readouts)
    (found,) = torch.autograd.grad(outputs.square().sum(), problem.features)
    assert found.any()


@needs_library
def test_arguments_in_another_order_in_memory_serve() -> None:
    problem = Problem(Shape(70, 6))
    expected = problem.solve()
    problem.features = problem.features.transpose(0, 1).contiguous().transpose(0, 1)
    problem.readouts = problem.readouts.repeat_interleave(2, dim=2)[..., ::2]
    problem.params = [
        value.mT.contiguous().mT if value.ndim == 2 else value for value in problem.params
    ]
    problem.d_outputs = problem.d_outputs.movedim(2, 0).contiguous().movedim(0, 2)
    assert_equal(problem.solve(), expected)


@needs_library
def test_the_caller_keeps_its_subnormal_numbers() -> None:
    Problem(Shape()).solve()
    assert (torch.tensor([1e-30]) * 1e-10).item() > 0


def _shrunk(value: Tensor) -> Tensor:
    return value[..., :-1]


@needs_library
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("features", _shrunk, "the features has the shape"),
        ("features", Tensor.float, "the features is torch.float32"),
        ("features", lambda value: value[0], "dimensions"),
        ("features", lambda value: value.to("meta"), "the features is on meta"),
        ("features", lambda value: value[:, :0], "at least 1 step"),
        ("readouts", lambda value: value[:2], "the read-outs has the shape"),
        ("readouts", Tensor.to_sparse, "the read-outs has the layout"),
        ("memory", lambda pair: (_shrunk(pair[0]), pair[1]), "the memory's weight has the shape"),
        ("memory", lambda pair: (pair[0], pair[1][:-1]), "has the shape"),
        ("weights", lambda layers: [*layers[:2], layers[2].float()], "a layer's weight is"),
        ("weights", lambda layers: [layers[0], _shrunk(layers[1]), layers[2]], "a layer's weight"),
        ("biases", lambda layers: layers[:2], "each with a weight and a bias, got 3 weights and 2"),
        ("weights", lambda layers: [], "1 to 3 layers"),
        ("biases", lambda layers: [layers[0], layers[1][:-1], layers[2]], "a layer's bias has"),
    ],
)
@pytest.mark.parametrize("graph", [False, True])
def test_what_does_not_fit_is_refused(name: str, change: Any, message: str, graph: bool) -> None:
    problem = Problem(Shape())
    head, given = problem.head(), {"features": problem.features, "readouts": problem.readouts}
    if name in given:
        given[name] = change(given[name])
    else:
        assert name in {field.name for field in fields(Head)}
        head = replace(head, **{name: change(getattr(head, name))})
    with torch.set_grad_enabled(graph), pytest.raises(InputError, match=message):
        head.sequence(**given)


@needs_library
@pytest.mark.parametrize(
    "state", [None, (torch.zeros(5, 6), torch.zeros(5, 6)), (torch.zeros(5, 1, 6),) * 2]
)
def test_a_state_that_does_not_fit_is_refused(state: Any) -> None:
    problem = Problem(Shape())
    with pytest.raises(InputError, match="state"):
        problem.head().step(problem.features[:, 0], problem.readouts[:, 0], state)


@needs_library
def test_weights_that_are_freed_after_preparation_are_refused() -> None:
    problem = Problem(Shape())
    head = problem.head().prepare()
    head.weights[0].untyped_storage().resize_(0)
    zeros = torch.zeros(5, 1, 6, dtype=DOUBLE)
    with pytest.raises(InputError, match="weights were resized"):
        head.step(problem.features[:, 0], problem.readouts[:, 0], (zeros, zeros))
