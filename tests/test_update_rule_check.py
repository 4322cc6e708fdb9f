"""The public check of update rules finds each way to break the contract."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from haltwise.testing import check_update_rule
from haltwise.update_rules import (
    Adam,
    LSTMRule,
    PooledGradient,
    State,
    SupportsBackpropagation,
    SupportsChunks,
    SupportsInPlace,
    UpdateRule,
    UpdateStep,
    update_,
)

WithoutReadout = UpdateStep.without_readout


class Right(UpdateRule):
    """Gradient descent with momentum."""

    def init(self, params: Tensor) -> State:
        return {"velocity": torch.zeros_like(params)}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        velocity = 0.9 * state["velocity"] - 0.1 * grad
        return WithoutReadout(velocity, {"velocity": velocity})


class Flat(Right):
    def init(self, params: Tensor) -> State:
        return {"velocity": torch.zeros(params.shape[1]).to(params)}


class Counted(Right):
    def init(self, params: Tensor) -> State:
        return {"velocity": torch.zeros_like(params), "count": params.new_zeros(())}


class Forgetful(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad, {})


class Growing(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad, {"velocity": torch.cat([state["velocity"], grad], 1)})


class Single(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad.float(), state)


class Silent(Right):
    @property
    def readout_size(self) -> int:
        return 3


class InPlace(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        velocity = state["velocity"].mul_(0.9).sub_(0.1 * grad)
        return WithoutReadout(velocity, {"velocity": velocity})


class Clipping(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad.clamp_(-1, 1), state)


class Resetting(Right):
    def init(self, params: Tensor) -> State:
        return {"velocity": params.zero_().clone()}


class Noisy(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad + torch.randn_like(grad), state)


class BatchNormalized(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad / grad.abs().amax(), state)


class Ordered(Right):
    """Gives the first problem of a batch a larger step."""

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        weight = torch.ones(len(grad), 1).to(grad)
        weight[0] = 2
        return WithoutReadout(-grad * weight, state)


class Masked(Right):
    """Gives up a whole batch for one problem that is not finite."""

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad if grad.isfinite().all() else torch.zeros_like(grad), state)


class Precise(Right):
    """Takes float32 for something else."""

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad * (1 if grad.dtype == torch.float64 else 0.9), state)


class Normalized(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad / grad.norm(dim=1, keepdim=True), state)


class WrongInPlace(Right, SupportsInPlace):
    def update_(self, grad: Tensor, state: State) -> UpdateStep:
        state["velocity"].mul_(0.8).sub_(0.1 * grad)
        return WithoutReadout(state["velocity"], state)


class RightInPlace(Right, SupportsInPlace):
    def update_(self, grad: Tensor, state: State) -> UpdateStep:
        state["velocity"].mul_(0.9).sub_(0.1 * grad)
        return WithoutReadout(state["velocity"], state)


class WrongChunks(Normalized, SupportsChunks):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-grad / (1 + grad.norm(dim=1, keepdim=True)), state)

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self.update(grad, state)


class WrongWithGraph(Right):
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return super().update(2 * grad if torch.is_grad_enabled() else grad, state)


class WrongBackpropagation(nn.Module, Right, SupportsBackpropagation):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1))

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return WithoutReadout(-self.rate.to(grad) * grad, state)

    def backpropagate(
        self, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
    ) -> State:
        self.rate.grad = (grads * cotangents.update).sum()  # the sign is wrong
        return {}


class Bare(Right):
    def update(self, grad: Tensor, state: State) -> Any:
        return super().update(grad, state).update


@pytest.mark.parametrize(
    ("rule", "promise"),
    [
        (Bare, "what update returns must be an UpdateStep, got Tensor"),
        (Flat, "velocity of the state must be a tensor with the 5 items along dimension 0"),
        (Counted, r"count of the state must be a tensor with the 5 items.*, got shape \[\]"),
        (Forgetful, "the state must keep its names, .*: there is no tensor velocity"),
        (Growing, r"must keep its names, dtypes and shapes: velocity is .*\[5, 14\] instead of"),
        (Single, "must be torch.float64"),
        (Silent, r"readout must have shape \[5, 3\], got \[5, 0\]"),
        (InPlace, "update changes its arguments"),
        (Clipping, "update changes its arguments"),
        (Resetting, "init changes the parameters"),
        (Noisy, "does not repeat"),
        (BatchNormalized, "run as"),
        (Ordered, "permutation"),
        (Masked, "NaN"),
        (Precise, "float32"),
        (Normalized, "zeros"),
        (WrongInPlace, "in place differ"),
        (WrongChunks, "in chunks differs"),
        (WrongWithGraph, "where gradients are enabled"),
        (WrongBackpropagation, "backpropagate differs"),
    ],
)
def test_each_broken_promise_is_named(rule: Callable[[], UpdateRule], promise: str) -> None:
    with pytest.raises(AssertionError, match=f"^{rule().__class__.__name__}: .*{promise}"):
        check_update_rule(rule())


@pytest.mark.parametrize("rule", [Right, RightInPlace, lambda: Adam(0.1), lambda: LSTMRule(4)])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_right_rules_pass(rule: Callable[[], UpdateRule], dim: int) -> None:
    check_update_rule(rule(), dim=dim)


def test_a_class_is_no_rule() -> None:
    kind: Any = Right
    with pytest.raises(AssertionError, match="must be an UpdateRule, got the class Right; make"):
        check_update_rule(kind)


def test_the_rule_is_left_as_it_was() -> None:
    rule = LSTMRule(4, generator=torch.Generator().manual_seed(0))
    before: dict[str, Any] = {name: value.clone() for name, value in rule.state_dict().items()}
    check_update_rule(rule)
    assert all(torch.equal(value, before[name]) for name, value in rule.state_dict().items())
    assert all(weight.grad is None for weight in rule.parameters())
    grad = torch.ones(1, 3)
    assert update_(rule, grad, rule.init(grad)).update.dtype == torch.float32
