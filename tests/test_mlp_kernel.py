"""The compiled step of the rule `mlp` against its twin in plain PyTorch."""

import pytest
import torch
from draws import randn
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DTYPES, assert_close, needs_library
from torch import Tensor
from torch.nn.utils.parametrizations import weight_norm

from haltwise.update_rules import MLPRule, update_chunk
from haltwise.update_rules.base import PooledGradient, State, UpdateStep

pytestmark = needs_library

COORDINATES = ("momenta", "squares", "agreement")
sizes = st.tuples(
    st.sampled_from((1, 3, 70)),
    st.sampled_from((8, 47, 64, 65, 191, 192, 193, 600)),
    st.sampled_from((1, 5, 32, 33)),
)


def rule_of(num_units: int, dtype: torch.dtype) -> MLPRule:
    """A rule whose outputs are far from Adam's."""
    rule = MLPRule(num_units, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        for seed, weight in enumerate(rule.parameters()):
            weight.add_(0.2 * randn(*weight.shape, seed=seed, dtype=dtype))
    return rule


def gradients(size: tuple[int, int], scale: float, dtype: torch.dtype, steps: int) -> list[Tensor]:
    """The first one is zero; coordinates differ in size."""
    sizes = 10 ** randn(*size, seed=99)
    drawn = (min(step, 1) * scale * sizes * randn(*size, seed=step) for step in range(steps))
    return [grad.to(dtype) for grad in drawn]


@torch.no_grad()
def steps_of(rule: MLPRule, grads: list[Tensor]) -> list[Tensor]:
    state, found = rule.init(grads[0]), []
    for grad in grads:
        step = rule.update(grad, state)
        state = step.state
        found += [step.update, step.readout]
    return [*found, *state.values()]


def in_plain_pytorch(rule: MLPRule, grads: list[Tensor]) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALTWISE_KERNEL", "plain")
        return steps_of(rule, grads)


@given(size=sizes, scale=st.sampled_from((1e-25, 1e-3, 1.0, 1e18)), dtype=st.sampled_from(DTYPES))
def test_steps_are_those_of_the_twin(
    size: tuple[int, int, int], scale: float, dtype: torch.dtype
) -> None:
    rule, grads = rule_of(size[2], dtype), gradients(size[:2], scale, dtype, 5)
    in_float64 = in_plain_pytorch(rule_of(size[2], torch.float64), [g.double() for g in grads])
    assert_close(steps_of(rule, grads), in_float64, in_float64=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("instruction_set")
def test_every_instruction_set_agrees(dtype: torch.dtype) -> None:
    rule, grads = rule_of(33, dtype), gradients((2, 250), 1.0, dtype, 4)
    assert_close(steps_of(rule, grads), in_plain_pytorch(rule, grads))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30, 1e-40, -0.0])
def test_a_strange_gradient_moves_others_as_the_twin_does(number: float) -> None:
    rule, grads = rule_of(32, torch.float32), gradients((2, 70), 1.0, torch.float32, 4)
    grads[2][0, 5] = number
    for found, expected in zip(steps_of(rule, grads), in_plain_pytorch(rule, grads), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_gradients_are_moved_by(dtype: torch.dtype) -> None:
    rule, generator = rule_of(32, dtype), torch.Generator().manual_seed(1)
    shares = 2 * torch.rand(4, 1, 70, generator=generator, dtype=dtype) - 1
    grads = [*(torch.finfo(dtype).max * shares)]
    found = steps_of(rule, grads)
    assert found[0].count_nonzero() == 70
    assert_close(found, in_plain_pytorch(rule, grads))


@torch.no_grad()
def chunk(rule: MLPRule, state: State, grad: Tensor) -> UpdateStep:
    pooled = PooledGradient.of(grad)._replace(sums=rule.sums(grad, state))
    return update_chunk(rule, grad, state, pooled)


def test_a_chunk_is_moved_in_its_place_and_an_update_is_not() -> None:
    rule, (first, grad) = rule_of(32, torch.float32), gradients((1, 300), 1.0, torch.float32, 2)
    with torch.no_grad():
        state = rule.update(grad, rule.init(first)).state
        before = {name: value.clone() for name, value in state.items()}
        expected = rule.update(grad, state)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    versions = [state[name]._version for name in COORDINATES]
    step = chunk(rule, state, grad)
    assert torch.equal(step.update, expected.update)
    assert torch.equal(step.readout, expected.readout)
    for name, version in zip(COORDINATES, versions, strict=True):
        assert step.state[name].data_ptr() == state[name].data_ptr()
        assert state[name]._version > version  # graphs that saved it notice
        assert torch.equal(state[name], expected.state[name])


def test_states_out_of_order_in_memory_are_read_as_they_are() -> None:
    rule, (first, grad) = rule_of(32, torch.float32), gradients((3, 90), 1.0, torch.float32, 2)
    with torch.no_grad():
        state = rule.update(grad, rule.init(first)).state
        expected = rule.update(grad, state)
        turned = {name: value.mT.contiguous().mT for name, value in state.items()}
        found = rule.update(grad.T.contiguous().T, turned)
    assert_close([found.update, *found.state.values()], [expected.update, *expected.state.values()])


@pytest.mark.usefixtures("one_thread")
def test_threads_change_no_bit() -> None:
    rule, grads = rule_of(32, torch.float32), gradients((2, 9000), 1.0, torch.float32, 2)
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(steps_of(rule, grads))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_is_learned_is_differentiated_by_the_twin() -> None:
    rule, (first, grad) = rule_of(5, torch.float64), gradients((2, 20), 1.0, torch.float64, 2)
    state = rule.update(first, rule.init(first)).state
    loss = rule.update(grad, state).update.sum()
    weight = next(rule.parameters())
    (slope,) = torch.autograd.grad(loss, weight)
    shift, ends = 1e-6, []
    for sign in (-1, 1):
        with torch.no_grad():
            weight[0, 0] += sign * shift
            ends.append(float(rule.update(grad, state).update.sum()))  # by the kernel
            weight[0, 0] -= sign * shift
    assert float(slope[0, 0]) == pytest.approx((ends[1] - ends[0]) / (2 * shift), rel=1e-5)


@pytest.mark.parametrize("name", ["log_scale", "log_unit", "sizes"])
def test_what_is_kept_of_a_problem_is_differentiated_by_the_twin(name: str) -> None:
    rule, (first, grad) = rule_of(5, torch.float64), gradients((2, 20), 1.0, torch.float64, 2)
    rule.requires_grad_(False)
    state = rule.update(grad, rule.init(first)).state
    leaf = state[name].clone().requires_grad_()

    def total(shift: float) -> Tensor:
        return rule.update(grad, {**state, name: leaf + shift}).update.sum()

    (slope,) = torch.autograd.grad(total(0), leaf)
    with torch.no_grad():  # by the kernel
        difference = (total(1e-6) - total(-1e-6)) / 2e-6
    assert float(slope.sum()) == pytest.approx(float(difference), rel=1e-4)


def test_weights_that_are_computed_from_others_are_read_as_they_are() -> None:
    rule, grads = rule_of(32, torch.float64), gradients((2, 20), 1.0, torch.float64, 3)
    expected = steps_of(rule, grads)
    for layer in rule.layers:
        weight_norm(layer)
    assert_close(steps_of(rule, grads), expected)
    assert_close(in_plain_pytorch(rule, grads), expected)
