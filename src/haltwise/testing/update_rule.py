"""The contract of an update rule as a check."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from haltwise.testing.assertions import (
    expect,
    expect_alike,
    expect_instance,
    expect_items,
    expect_kinds,
    expect_shape,
    global_randomness_untouched,
    normal,
    tensors,
    unchanged,
)
from haltwise.update_rules import (
    PooledGradient,
    State,
    SupportsBackpropagation,
    SupportsChunks,
    UpdateRule,
    UpdateStep,
    backpropagate,
    prepare,
    update_,
    update_chunk,
)
from haltwise.update_rules.capabilities import backpropagate_by_autograd

__all__ = ["check_update_rule"]

_NUM_ITEMS, _NUM_STEPS = 5, 4
_EXACT = 1e-9  # relative; of float64 numbers that were summed in another order
_SINGLE = 1e-3  # relative; of float32 numbers after a few steps


@global_randomness_untouched()
def check_update_rule(rule: UpdateRule, *, dim: int = 7) -> None:
    """Check that an update rule keeps the contract of `haltwise.update_rules.UpdateRule`.

    On random gradients of 5 problems, in float64:

    - every entry of the state has the problems along dimension 0, and keeps its shape and dtype;
    - updates are [B, D], read-outs [B, R];
    - `init` and `update` change nothing in place and repeat bit for bit;
    - problems are independent: a permutation permutes, a selection of them runs as it would alone,
      and a problem that is not finite leaves the others as they are;
    - float32 agrees with float64;
    - gradients give finite updates, those of zeros too;
    - optional capabilities (steps in place, chunks, backpropagation, preparation) give what
      `update` gives.

    Args:
        rule: The rule; it is left as it was.
        dim: D, the number of coordinates of each problem.

    Raises:
        AssertionError: Naming the rule and the promise that it breaks.

    Examples:
        >>> from haltwise.update_rules import UpdateRule, UpdateStep
        >>> class SignDescent(UpdateRule):
        ...     def init(self, params):
        ...         return {}
        ...
        ...     def update(self, grad, state):
        ...         return UpdateStep.without_readout(-0.1 * grad.sign_(), state)
        >>> check_update_rule(SignDescent())
        Traceback (most recent call last):
        AssertionError: SignDescent: update changes its arguments in place
    """
    expect_instance(rule, UpdateRule, "an update rule")
    double = _in_dtype(rule, torch.float64)
    scale = 10.0 ** torch.linspace(-2, 2, _NUM_ITEMS, dtype=torch.float64)
    grads = normal(1, _NUM_ITEMS, _NUM_STEPS, dim) * scale.view(-1, 1, 1)
    try:
        with torch.no_grad():
            _check_shapes(double, grads)
            _check_purity(double, grads)
            whole = _run(double, grads)
            _check_independence(double, grads, whole)
            _check_numbers(double, grads, whole)
            _check_chunks(double, grads)
        _check_graph(double, grads)
    except AssertionError as error:
        raise AssertionError(f"{type(rule).__name__}: {error}") from error


def _in_dtype(rule: UpdateRule, dtype: torch.dtype) -> UpdateRule:
    """Copy the rule with its weights in another dtype."""
    rule = copy.deepcopy(rule)
    if isinstance(rule, nn.Module):
        rule.to(dtype)
    return rule


def _run(
    rule: UpdateRule,
    grads: Tensor,
    state: State | None = None,
    step: Callable[[UpdateRule, Tensor, State], UpdateStep] | None = None,
) -> UpdateStep:
    """Return updates [B, T, D], read-outs [B, T, R] and the last state; gradients [B, T, D]."""
    state = rule.init(torch.zeros_like(grads[:, 0])) if state is None else state
    state = {name: value.clone() for name, value in state.items()}
    updates, readouts = [], []
    for grad in grads.clone().unbind(1):
        taken = step(rule, grad, state) if step else rule.update(grad, state)
        updates.append(taken.update.clone())
        readouts.append(taken.readout.clone())
        state = taken.state
    return UpdateStep(torch.stack(updates, 1), torch.stack(readouts, 1), state)


def _at(step: UpdateStep, index: Tensor) -> dict[str, Tensor]:
    return {name: value[index] for name, value in tensors(step).items()}


def _check_shapes(rule: UpdateRule, grads: Tensor) -> None:
    for num_items in (_NUM_ITEMS, 1):
        grad = grads[:num_items, 0].clone()
        first = state = rule.init(torch.zeros_like(grad))
        expect_items(first, num_items, "the state")
        for _ in range(2):
            step: object = rule.update(grad, state)
            expect_instance(step, UpdateStep, "what update returns")
            assert isinstance(step, UpdateStep)
            update, readout, state = step
            expect_shape(update, grad.shape, "update")
            expect_shape(readout, (num_items, rule.readout_size), "readout")
            expect_kinds(state, first, "the state")
            expect(
                update.dtype == readout.dtype == grad.dtype,
                f"update and readout must be {grad.dtype} as the gradient is",
            )


def _check_purity(rule: UpdateRule, grads: Tensor) -> None:
    state, grad, params = _run(rule, grads).state, grads[:, 0].clone(), grads[:, 1].clone()
    with unchanged("update changes its arguments in place", {"grad": grad, "state": state}):
        first = rule.update(grad, state)
    with unchanged("init changes the parameters", {"params": params}):
        rule.init(params)
    expect_alike(
        tensors(rule.update(grad, state)),
        tensors(first),
        "update does not repeat: it must depend on its arguments alone",
    )


def _check_independence(rule: UpdateRule, grads: Tensor, whole: UpdateStep) -> None:
    for message, index in (
        ("a permutation of the problems does not permute updates", [3, 1, 4, 0, 2]),
        ("selected problems do not run as they would alone", [4, 1]),
        ("a problem does not run as it would alone", [2]),
    ):
        chosen = torch.tensor(index)
        alone = _run(rule, grads[chosen])
        expect_alike(tensors(alone), _at(whole, chosen), message, _EXACT)
    poisoned, others = grads.clone(), torch.tensor([0, 1, 3, 4])
    poisoned[2, 1] = torch.nan
    expect_alike(
        _at(_run(rule, poisoned), others),
        _at(whole, others),
        "a problem whose gradient is NaN changes the updates of others",
        _EXACT,
    )


def _check_numbers(rule: UpdateRule, grads: Tensor, whole: UpdateStep) -> None:
    single = _run(_in_dtype(rule, torch.float32), grads.float())
    expect(single.update.dtype == torch.float32, "float32 gradients give other updates")
    expect_alike(tensors(single), tensors(whole), "float32 and float64 disagree", _SINGLE)
    zeros = torch.zeros_like(grads)
    for what, found in (
        ("random gradients", whole),
        ("gradients of zeros", _run(rule, zeros)),
        ("gradients of zeros", _run(rule, zeros, whole.state)),
    ):
        expect(
            all(bool(value.isfinite().all()) for value in tensors(found).values()),
            f"{what} give updates, read-outs or states that are not finite",
        )
    in_place = _run(prepare(rule), grads, step=update_)
    expect_alike(tensors(in_place), tensors(whole), "steps in place differ from update", _EXACT)


def _check_chunks(rule: UpdateRule, grads: Tensor) -> None:
    if not isinstance(rule, SupportsChunks):
        return
    dim = grads.shape[2]
    state, grad = _run(rule, grads[:, 1:]).state, grads[:, 0]
    whole, pooled = rule.update(grad, state), PooledGradient.of(grad)
    readout = torch.zeros_like(whole.readout)

    def own(state: State, index: Tensor) -> State:
        """Entries of another second dimension belong to all coordinates."""
        return {
            name: value[:, index] if value.ndim > 1 and value.shape[1] == dim else value.clone()
            for name, value in state.items()
        }

    chunks = torch.arange(dim).chunk(2)
    sums = [rule.sums(grad[:, index], own(state, index)) for index in chunks]
    known = [value for value in sums if value is not None]
    if known:
        pooled = pooled._replace(sums=torch.stack(known).sum(0))
    for index in chunks:
        step = update_chunk(rule, grad[:, index], own(state, index), pooled)
        readout += step.readout * len(index)
        expect_alike(
            {"update": step.update, **step.state},
            {"update": whole.update[:, index], **own(whole.state, index)},
            "a step in chunks differs from a step of all coordinates",
            _EXACT,
        )
    expect_alike(
        {"readout": readout / dim},
        {"readout": whole.readout},
        "the read-outs of chunks are not means over their coordinates",
        _EXACT,
    )


def _check_graph(rule: UpdateRule, grads: Tensor) -> None:
    with torch.no_grad():
        first = _run(rule, grads[:, :1]).state
        expected = _run(rule, grads, first)
    expect_alike(
        tensors(_run(rule, grads, first)),
        tensors(expected),
        "update differs where gradients are enabled",
        _EXACT,
    )
    if not isinstance(rule, SupportsBackpropagation):
        return
    cotangents = UpdateStep(
        normal(3, *expected.update.shape), normal(4, *expected.readout.shape), first
    )
    results: list[dict[str, Tensor]] = []
    for function in (backpropagate, backpropagate_by_autograd):
        own = _in_dtype(rule, torch.float64)
        result = tensors({"state": function(own, grads, first, cotangents, wants_state=True)})
        if isinstance(own, nn.Module):
            for name, weight in own.named_parameters():
                if weight.grad is not None:
                    result[name] = weight.grad.view(1, -1)
        results.append(result)
    everything = {**results[0], **results[1]}
    fast, slow = (
        {name: result.get(name, torch.zeros_like(value)) for name, value in everything.items()}
        for result in results
    )
    expect_alike(fast, slow, "backpropagate differs from autograd through update", _EXACT)
