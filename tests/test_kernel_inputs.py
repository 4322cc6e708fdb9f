"""Whatever does not fit is refused by a sentence before it reaches the kernel's raw memory.

`main` goes through all cases and reports those that are not refused: a test calls it where nothing
is asserted, in a process whose crash would show.
"""

import gc
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from kernel_cases import needs_library
from programs import run_optimized, use_distributed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from haltwise import _kernels
from haltwise._core.errors import InputError
from haltwise._kernels import lstm_sequence, lstm_step, native
from haltwise.update_rules import (
    LSTMRule,
    MLPRule,
    PooledGradient,
    State,
    UpdateStep,
    backpropagate,
    prepare,
    update_,
    update_chunk,
)

B, D, L, H, T = 2, 5, 2, 4, 3


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Labelled(Tensor):
    """A subclass like any other."""


@dataclass
class Step:
    """Arguments of a step and of the gradient of some; a case spoils one of them."""

    rule: LSTMRule = field(
        default_factory=lambda: LSTMRule(H, L, generator=torch.Generator().manual_seed(0))
    )
    grad: Tensor = field(default_factory=lambda: randn(B, D))
    pooled: PooledGradient = field(default_factory=lambda: PooledGradient.of(randn(B, D)))
    state: State = field(
        default_factory=lambda: {
            "hidden": randn(B, D, L, H, seed=2).tanh(),
            "cell": randn(B, D, L, H, seed=3),
        }
    )

    @torch.no_grad()
    def update(self) -> UpdateStep:
        return self.rule.update(self.grad, self.state)

    def update_with_graph(self) -> UpdateStep:
        return self.rule.update(self.grad, self.state)

    def update_(self) -> UpdateStep:
        return update_(self.rule, self.grad, self.state)

    def prepared(self) -> UpdateStep:
        return update_(prepare(self.rule), self.grad, self.state)

    def update_chunk(self) -> UpdateStep:
        return update_chunk(self.rule, self.grad, self.state, self.pooled)

    def backpropagate(self) -> State:
        """Through T steps on the same gradient."""
        grads = torch.stack([self.grad] * T, 1)
        cotangents = UpdateStep(randn(B, T, D), randn(B, T, H), {"cell": randn(B, D, L, H)})
        return backpropagate(self.rule, grads, self.state, cotangents, wants_state=True)


WAYS = ("update", "update_with_graph", "update_", "prepared", "update_chunk", "backpropagate")


def set_grad(change: Callable[[Tensor], Any]) -> Callable[[Step], None]:
    def spoil(step: Step) -> None:
        step.grad = change(step.grad)

    return spoil


def set_state(name: str, change: Callable[[Tensor], Any]) -> Callable[[Step], None]:
    def spoil(step: Step) -> None:
        step.state[name] = change(step.state[name])

    return spoil


def set_weight(name: str, change: Callable[[Tensor], Any]) -> Callable[[Step], None]:
    def spoil(step: Step) -> None:
        *path, last = name.split(".")
        owner = step.rule.get_submodule(".".join(path))
        changed = change(getattr(owner, last).detach())
        owner._parameters[last] = nn.Parameter(changed)

    return spoil


def freed(value: Tensor) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(0)
    return value


def freed_transposed(value: Tensor) -> Tensor:
    value = value.T.contiguous().T
    value.untyped_storage().resize_(0)
    return value


def shrunk(value: Tensor) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(value.nbytes - 4)
    return value


def nested(value: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors.*")
        return torch.nested.nested_tensor([*value])


def fake(value: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(value)


ANYWHERE: dict[str, tuple[Callable[[Step], None], str]] = {
    "more coordinates": (set_grad(lambda _: randn(B, 64 * D)), r"\[2, 5, 2, 4\], expected \[2, 3"),
    "fewer coordinates": (set_grad(lambda g: g[:, :3]), r"state.*expected \[2, 3, 2, 4\]"),
    "more problems": (set_grad(lambda _: randn(40, D)), r"expected \[40"),
    "flat gradient": (set_grad(lambda g: g.flatten()), r"dimensions|expected \[10"),
    "gradient in double": (set_grad(Tensor.double), "float64, but the weights are torch.float32"),
    "gradient in half": (set_grad(Tensor.half), "float16, but the weights"),
    "gradient of integers": (set_grad(Tensor.long), "int64, but the weights"),
    "complex gradient": (set_grad(lambda g: g.to(torch.complex64)), "complex64, but the weights"),
    "labelled gradient": (set_grad(lambda g: g.as_subclass(Labelled)), "is a Labelled"),
    "state of fewer coordinates": (set_state("hidden", lambda h: h[:, :3]), r"\[2, 3, 2, 4\], exp"),
    "cell of fewer coordinates": (set_state("cell", lambda c: c[:, :3]), "the cell state has the"),
    "state of fewer problems": (set_state("hidden", lambda h: h[:1]), r"\[1, 5, 2, 4\], expected"),
    "state of fewer layers": (set_state("hidden", lambda h: h[:, :, :1]), "the hidden state has"),
    "state of fewer units": (set_state("cell", lambda c: c[..., :3]), "the cell state has the"),
    "flat state": (set_state("hidden", lambda h: h.flatten(0, 1)), "the hidden state has the"),
    "state in double": (set_state("hidden", Tensor.double), "hidden state is torch.float64"),
    "labelled state": (set_state("cell", lambda c: c.as_subclass(Labelled)), "is a Labelled"),
    "state on meta": (set_state("cell", lambda c: c.to("meta")), "cell state is on meta"),
    "nested state": (set_state("cell", nested), "cell state is a nested tensor"),
    "sparse state": (set_state("cell", Tensor.to_sparse), r"sparse_coo; make it dense"),
}
"""Refused on every way, by the kernel and by the reference."""

TENSORS: dict[str, tuple[Callable[[Step], None], str]] = {
    "gradient on meta": (set_grad(lambda g: g.to("meta")), "gradients? is on meta"),
    "sparse gradient": (set_grad(Tensor.to_sparse), "sparse_coo; make it dense"),
    "fake gradient": (set_grad(fake), "is a FakeTensor"),
    "array": (set_grad(Tensor.numpy), "is a ndarray"),
    "list": (set_grad(Tensor.tolist), "is a list"),
    "nested gradient": (set_grad(nested), "is a nested tensor"),
    "no coordinates": (set_grad(lambda g: g[:, :0]), "at least 1 coordinate"),
}
"""Refused where a step reads the gradient itself; features of it cannot be made on other ways."""

MEMORY: dict[str, tuple[Callable[[Step], None], str]] = {
    "freed gradient": (set_grad(freed), "gradient has no memory"),
    "shrunk gradient": (set_grad(shrunk), "gradient has no memory"),
    "freed transposed gradient": (set_grad(freed_transposed), "gradient has no memory"),
    "freed state": (set_state("hidden", freed), "hidden state has no memory"),
    "shrunk state": (set_state("cell", shrunk), "cell state has no memory"),
    "larger weight": (set_weight("weights.1", lambda _: randn(64, 64)), "weight has the shape"),
    "smaller weight": (set_weight("weights.1", lambda w: w[:, :1]), "weight has the shape"),
    "flat weight": (set_weight("weights.0", lambda w: w.flatten()), "dimensions"),
    "tiny weight": (set_weight("weights.0", lambda w: w[:, :2]), "cannot have -2 inputs"),
    "other inputs": (set_weight("weights.0", lambda w: w[:, :7]), "2 or 4 inputs and 1, 2"),
    "smaller bias": (set_weight("biases.1", lambda b: b[:4]), "bias has the shape"),
    "empty bias": (set_weight("biases.0", lambda b: b[:0]), "a layer of 0 units"),
    "weight in double": (set_weight("weights.1", Tensor.double), "weight is torch.float64"),
    "weight on meta": (set_weight("weights.1", lambda w: w.to("meta")), "weight is on meta"),
    "freed weight": (set_weight("weights.1", freed), "weight has no memory"),
    "read-out of fewer units": (set_weight("readout_weight", lambda w: w[:, :2]), "shape"),
    "read-out of fewer outputs": (set_weight("readout_weight", lambda w: w[:3]), "expected"),
    "read-out bias of 3": (set_weight("readout_bias", lambda b: b[:3]), "1, 2 or 4 outputs"),
}
"""Refused by the kernel."""


def spoiled(case: str) -> tuple[Step, str]:
    spoil, message = (ANYWHERE | TENSORS | MEMORY)[case]
    step = Step()
    spoil(step)
    return step, message


@pytest.fixture(params=["compiled", "plain"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setenv("HALTWISE_KERNEL", "plain")
    elif not _kernels.available():
        pytest.skip(f"runs {_kernels.implementation()}")


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ANYWHERE)
def test_what_does_not_fit_is_refused_everywhere(case: str, way: str) -> None:
    step, message = spoiled(case)
    with pytest.raises(InputError, match=message):
        getattr(step, way)()


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("way", ["update", "update_", "prepared", "update_chunk"])
@pytest.mark.parametrize("case", TENSORS)
def test_gradients_of_other_kinds_are_refused(case: str, way: str) -> None:
    step, message = spoiled(case)
    with pytest.raises(InputError, match=message):
        getattr(step, way)()


@needs_library
@pytest.mark.parametrize("way", ["update", "update_", "prepared", "update_chunk"])
@pytest.mark.parametrize("case", MEMORY)
def test_what_has_no_memory_or_weights_that_do_not_fit_are_refused(case: str, way: str) -> None:
    step, message = spoiled(case)
    with pytest.raises(InputError, match=message):
        getattr(step, way)()


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize(
    ("pooled", "message"),
    [
        (PooledGradient(randn(B + 1), randn(B)), r"mean has the shape \[3\], expected \[2\]"),
        (PooledGradient(randn(B), randn(B, 2)), r"log_rms has the shape \[2, 2\]"),
        (PooledGradient(randn(B).double(), randn(B)), "mean is torch.float64"),
        (PooledGradient(randn(B), randn(B).to("meta")), "log_rms is on meta"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(pooled: PooledGradient, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Step(pooled=pooled).update_chunk()


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": randn(B, T, D + 1)}, r"updates' derivative has the shape \[2, 3, 6\]"),
        ({"update": randn(B, T + 1, D)}, "updates' derivative has the shape"),
        ({"update": randn(B, T, D).double()}, "updates' derivative is torch.float64"),
        ({"readout": randn(B, T, H - 1)}, "read-outs' derivative has the shape"),
        ({"state": {"cell": randn(B, D - 1, L, H)}}, "cell state's derivative has the shape"),
        ({"state": {"hidden": randn(B, D, L, H).to("meta")}}, "hidden state's derivative is on"),
    ],
)
def test_derivatives_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    step, cotangents = Step(), UpdateStep(randn(B, T, D), randn(B, T, H), {})
    with pytest.raises(InputError, match=message):
        backpropagate(
            step.rule,
            randn(B, T, D),
            step.state,
            cotangents._replace(**changes),
            wants_state=True,
        )


# --- Sequences -----------------------------------------------------------------------------------


def sequence() -> list[Any]:
    """Arguments of `lstm_sequence`: inputs, hidden, cell, weights, biases."""
    weights = [randn(4 * H, 3 + H), randn(4 * H, 2 * H)]
    biases = [randn(4 * H), randn(4 * H)]
    return [randn(T, D, 3), randn(D, L, H), randn(D, L, H), weights, biases]


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x[:, :3], "expected"),
        (0, lambda x: x[..., :2], "expected"),
        (0, Tensor.double, "inputs is torch.float64"),
        (0, lambda x: x.as_subclass(Labelled), "inputs is a Labelled"),
        (0, lambda x: x.to("meta"), "inputs is on meta"),
        (1, lambda h: h[:3], "hidden state has the shape"),
        (1, lambda h: h[:, :1], "hidden state has the shape"),
        (1, Tensor.double, "hidden state is torch.float64"),
        (1, lambda h: h.to("meta"), "hidden state is on meta"),
        (2, lambda c: c[..., :2], "cell state has the shape"),
        (2, lambda c: c.as_subclass(Labelled), "cell state is a Labelled"),
        (3, lambda w: [w[0], w[1][:, :5]], "weight has the shape"),
        (3, lambda w: [w[0], w[1].double()], "weight is torch.float64"),
        (4, lambda b: [b[0], b[1][:3]], "bias has the shape"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(
    position: int, change: Callable[[Any], Any], message: str, one_step: bool
) -> None:
    arguments = sequence()
    arguments[position] = change(arguments[position])
    function: Callable[..., Any] = lstm_step if one_step else lstm_sequence
    if one_step:
        arguments[0] = arguments[0][0]
    with pytest.raises(InputError, match=message):
        function(*arguments)


@needs_library
def test_a_derivative_of_a_subclass_is_refused() -> None:
    arguments = sequence()
    arguments[3][0].requires_grad_()
    outputs, _, _ = lstm_sequence(*arguments)
    with pytest.raises(InputError, match="is a Labelled"):
        outputs.backward(torch.ones_like(outputs).as_subclass(Labelled))


@pytest.mark.usefixtures("_implementation")
def test_a_sequence_of_no_steps_is_refused() -> None:
    inputs, *others = sequence()
    with pytest.raises(InputError, match="at least 1 step"):
        lstm_sequence(inputs[:0], *others)
    cotangents = UpdateStep(randn(B, 0, D), randn(B, 0, H), {})
    with pytest.raises(InputError, match="at least 1 step"):
        backpropagate(Step().rule, randn(B, 0, D), Step().state, cotangents, wants_state=True)


@pytest.mark.usefixtures("_implementation")
def test_no_layers_are_refused() -> None:
    with pytest.raises(InputError, match="got 0 and 0"):
        lstm_step(randn(D, 3), randn(D, L, H), randn(D, L, H), [], [])


# --- Beyond single tensors -----------------------------------------------------------------------


@needs_library
def test_weights_that_are_freed_after_preparation_are_refused() -> None:
    step = Step()
    rule = prepare(step.rule)
    step.rule.weights[1].untyped_storage().resize_(0)
    with pytest.raises(InputError, match="resized after `prepare`"):
        update_(rule, step.grad, step.state)


@needs_library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_preparation_under_a_mode_without_memory_is_refused() -> None:
    step = Step()
    step.rule.weights[1].data = step.rule.weights[1].data.T.contiguous().T
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(InputError, match="FakeTensor"):
        prepare(step.rule)


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("way", ["update_", "prepared", "update_chunk"])
@pytest.mark.parametrize("overlap", ["both states", "parts of both states", "gradient and state"])
def test_memory_that_overlaps_is_not_written_while_it_is_read(overlap: str, way: str) -> None:
    size, many = 700 * L * H, 700  # several blocks of rows
    memory = randn(2, size + 5).flatten()
    step = Step(grad=randn(1, many), pooled=PooledGradient.of(randn(1, many)))
    shift = {"both states": 0, "parts of both states": 3, "gradient and state": size}[overlap]
    hidden, cell = (memory[at : at + size].view(1, many, L, H) for at in (0, shift))
    if overlap == "gradient and state":
        step.grad = memory[100 : 100 + many].view(1, many)
    alone = Step(grad=step.grad.clone(), pooled=step.pooled)
    alone.state = {"hidden": hidden.clone(), "cell": cell.clone()}
    step.state = {"hidden": hidden, "cell": cell}
    expected, found = getattr(alone, way)(), getattr(step, way)()
    assert torch.equal(found.update, expected.update)
    assert all(torch.equal(found.state[name], value) for name, value in expected.state.items())


@pytest.mark.usefixtures("_implementation")
def test_a_graph_is_not_changed_by_a_step_in_place() -> None:
    step = Step()
    expected = torch.autograd.grad(step.update_with_graph().update.sum(), step.rule.weights[1])
    taken = step.update_with_graph()
    after = step.update_()
    if after.state["hidden"].data_ptr() == step.state["hidden"].data_ptr():
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(taken.update.sum(), step.rule.weights[1])
    else:
        found = torch.autograd.grad(taken.update.sum(), step.rule.weights[1])
        assert torch.equal(found[0], expected[0])


@pytest.mark.usefixtures("_implementation")
def test_a_state_that_requires_a_gradient_is_left_as_it_is() -> None:
    step = Step()
    copies = {name: value.clone() for name, value in step.state.items()}
    for value in step.state.values():
        value.requires_grad_()
    after = step.update_()
    assert all(torch.equal(step.state[name], value) for name, value in copies.items())
    assert not any(value.requires_grad for value in after.state.values())


def test_inference_tensors_serve() -> None:
    expected = Step().update_().update
    with torch.inference_mode():
        assert torch.equal(Step().update_().update, expected)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:.torch.jit:FutureWarning",
    "ignore::torch.jit.TracerWarning",
)
def test_a_trace_holds_the_step_and_not_its_result() -> None:
    step = Step()
    step.rule.requires_grad_(False)
    with torch.no_grad():

        def update(grad: Tensor) -> Tensor:
            return step.rule.update(grad, step.state).update

        traced = torch.jit.trace(update, step.grad, check_trace=False)
        other = randn(B, D, seed=7)
        torch.testing.assert_close(traced(other), update(other))


@pytest.mark.filterwarnings(  # PyTorch warns of itself
    "ignore::DeprecationWarning", "ignore:.torch.jit:FutureWarning"
)
def test_forward_derivatives_pass_through_a_step() -> None:
    step, tangent = Step(), randn(B, D, L, H, seed=5)

    @torch.no_grad()
    def update(cell: Tensor) -> Tensor:
        return step.rule.update(step.grad, {**step.state, "cell": cell}).update

    found = torch.func.jvp(update, (step.state["cell"],), (tangent,))[1]
    step.rule.double()
    step.grad, tangent = step.grad.double(), tangent.double()
    step.state = {name: value.double() for name, value in step.state.items()}
    ends = [update(step.state["cell"] + sign * 1e-5 * tangent) for sign in (1, -1)]
    torch.testing.assert_close(found.double(), (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-4)


@needs_library
def test_an_interrupt_leaves_no_thread_with_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper may still be in the kernel when the caller is interrupted."""
    begun, go_on, library = threading.Event(), threading.Event(), native.library()

    def kernel(*arguments: Any) -> int:
        if threading.current_thread() is threading.main_thread():
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        go_on.wait(10)
        return int(library.functions["lstm_forward", torch.float32](*arguments))

    functions = {**library.functions, ("lstm_forward", torch.float32): kernel}
    monkeypatch.setattr(native, "_load", lambda: library._replace(functions=functions))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        step = Step(grad=randn(1, 20_000))
        step.state = step.rule.init(step.grad)
        watched = weakref.ref(step.grad)
        with pytest.raises(KeyboardInterrupt):
            step.update()
        del step
        gc.collect()
        assert watched() is not None
        go_on.set()
        for _ in range(500):
            if watched() is None:
                break
            time.sleep(0.01)
        assert watched() is None
    finally:
        go_on.set()
        torch.set_num_threads(threads)


@needs_library
@pytest.mark.parametrize("kind", [LSTMRule, MLPRule])
def test_an_interrupt_leaves_threads_the_weights_that_they_read(
    kind: type[LSTMRule] | type[MLPRule], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, grad, whole = kind(H), randn(2, 20), native.operand
    for weight in rule.parameters():  # out of order in memory, so that copies are read
        weight.data = weight.data.t().contiguous().t()
    read, left = [], []

    def noted(*given: Any) -> Tensor:
        tensor = whole(*given)
        read.append(weakref.ref(tensor))
        return tensor

    def interrupted(*given: Any) -> None:
        left.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "operand", noted)
    monkeypatch.setattr(native, "run", interrupted)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        rule.update(grad, rule.init(grad))
    gc.collect()
    assert len(left) == 1
    assert all(tensor() is not None for tensor in read)


@needs_library
@pytest.mark.parametrize("kind", [LSTMRule, MLPRule])
def test_a_traced_step_is_the_step(kind: type[LSTMRule] | type[MLPRule]) -> None:
    rule, grads = kind(H), [randn(2, 20, seed=seed) for seed in range(2)]

    @torch.no_grad()
    def update(grad: Tensor, state: State) -> Tensor:
        return rule.update(grad, state).update

    traced = make_fx(update)(grads[0], rule.init(grads[0]))
    for grad in grads:
        state = rule.init(grad)
        torch.testing.assert_close(traced(grad, state), update(grad, state))


@needs_library
def test_vmap_is_refused() -> None:
    step = Step()
    with torch.no_grad(), pytest.raises(InputError, match="no memory"):
        torch.func.vmap(lambda grad: step.rule.update(grad, step.state).update)(randn(3, B, D))


@needs_library
def test_a_mode_that_makes_results_without_memory_is_refused() -> None:
    step = Step()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(InputError, match="FakeTensor"):
        step.update()


def test_the_default_device_and_dtype_do_not_matter() -> None:
    expected = Step().update()
    gradient = Step().backpropagate()
    step = Step()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = step.update()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.update, expected.update)
    step = Step()
    cotangents = UpdateStep(randn(B, T, D), randn(B, T, H), {"cell": randn(B, D, L, H)})
    grads = torch.stack([step.grad] * T, 1)
    with torch.device("meta"):
        again = backpropagate(step.rule, grads, step.state, cotangents, wants_state=True)
    assert all(torch.equal(again[name], value) for name, value in gradient.items())


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("way", WAYS)
def test_what_only_lies_differently_in_memory_gives_the_same(way: str) -> None:
    def result(step: Step) -> list[Tensor]:
        found = getattr(step, way)()
        return [*found.values()] if isinstance(found, dict) else [found[0], *found[2].values()]

    expected = result(Step())
    step = Step()
    step.grad = torch.stack([step.grad] * 2, -1)[..., 0]
    step.state = {name: value.transpose(0, 1) for name, value in step.state.items()}
    step.state = {name: value.contiguous().transpose(0, 1) for name, value in step.state.items()}
    assert not any(value.is_contiguous() for value in (step.grad, *step.state.values()))
    for found, value in zip(result(step), expected, strict=True):
        torch.testing.assert_close(found, value)
    step = Step()
    step.grad = torch.complex(torch.zeros(B, D), -step.grad).conj().imag
    assert step.grad.is_neg()
    for found, value in zip(result(step), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_a_distributed_tensor_is_refused() -> None:
    shown = use_distributed("""
from haltwise.update_rules import LSTMRule, update_
rule = LSTMRule(4)
try:
    update_(rule, spread, rule.init(torch.ones(1, 3)))
except ValueError as error:
    print(error)
""")
    assert "is a DTensor" in shown
    assert "to_local()" in shown


@needs_library
def test_all_of_it_is_refused_without_assertions_too() -> None:
    shown = run_optimized(f"import {__name__} as own; own.main()", __name__)
    assert shown.strip() == "assertions: off; accepted: []"


def main() -> None:
    """Try every case in one process."""
    accepted = []
    for case in ANYWHERE | TENSORS | MEMORY:
        for way in ("update", "update_", "prepared", "update_chunk"):
            step, _ = spoiled(case)
            try:
                getattr(step, way)()
            except InputError:
                continue
            accepted.append((case, way))
    sys.stdout.write(f"assertions: {'on' if __debug__ else 'off'}; accepted: {accepted}\n")
