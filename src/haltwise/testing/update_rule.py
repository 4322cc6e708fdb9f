"""The contract of update rules, as a check."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from haltwise._core.tensors import select_state
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


def check_update_rule(rule: UpdateRule, *, dim: int = 7) -> None:
    """Check that an update rule keeps the contract of `haltwise.update_rules.UpdateRule`.

    On random gradients of 5 problems, in float64:

    - every entry of the state has the problems along dimension 0, and keeps its shape and dtype;
    - updates are [B, D], read-outs [B, R];
    - `init` and `update` change nothing in place and repeat bit for bit;
    - problems are independent: a permutation permutes, a selection of them runs as it would alone,
      and a problem that is not finite leaves the others as they are;
    - float32 agrees with float64;
    - gradients of zeros give finite updates;
    - optional capabilities (steps in place, chunks, backpropagation, preparation) give what
      `update` gives.

    Args:
        rule: The rule; it is left as it was.
        dim: D, the number of coordinates of each problem.

    Raises:
        AssertionError: Naming the rule and the promise that it breaks.

    Examples:
        >>> import torch
        >>> from haltwise.update_rules import UpdateRule, UpdateStep
        >>> class HeavyBall(UpdateRule):
        ...     def init(self, params):
        ...         return {"velocity": torch.zeros_like(params)}
        ...
        ...     def update(self, grad, state):
        ...         velocity = 0.9 * state["velocity"] - 0.1 * grad
        ...         return UpdateStep.without_readout(velocity, {"velocity": velocity})
        >>> check_update_rule(HeavyBall())
        >>> class InPlace(HeavyBall):
        ...     def update(self, grad, state):
        ...         velocity = state["velocity"].mul_(0.9).sub_(0.1 * grad)
        ...         return UpdateStep.without_readout(velocity, {"velocity": velocity})
        >>> check_update_rule(InPlace())
        Traceback (most recent call last):
        AssertionError: InPlace: update changes its arguments in place
    """
    rule = _in_dtype(rule, torch.float64)
    with torch.no_grad():
        for check in (
            _check_shapes,
            _check_purity,
            _check_independence,
            _check_precision,
            _check_zero_gradients,
            _check_steps_in_place,
            _check_chunks,
        ):
            check(rule, dim)
    _check_graph(rule, dim)


def _require(rule: UpdateRule, promise: str, kept: bool) -> None:
    if not kept:
        raise AssertionError(f"{type(rule).__name__}: {promise}")


# ------------------------------------------------------------------------------ checks


def _check_shapes(rule: UpdateRule, dim: int) -> None:
    grads = _gradients(dim)
    for num_items in (_NUM_ITEMS, 1):
        grad = grads[:num_items, 0]
        first = rule.init(torch.zeros_like(grad))
        for name, value in first.items():
            _require(
                rule,
                f"state entry {name!r} must have the problems along dimension 0, and there are "
                f"{num_items}, got the shape {list(value.shape)}",
                value.ndim > 0 and len(value) == num_items,
            )
        state = first
        for _ in range(2):
            step = rule.update(grad, state)
            state = step.state
            readout = num_items, rule.readout_size
            found = tuple(step.update.shape), tuple(step.readout.shape)
            _require(
                rule,
                f"update and readout must have the shapes {list(grad.shape)} and {list(readout)}, "
                f"got {list(found[0])} and {list(found[1])}",
                found == (grad.shape, readout),
            )
            _require(
                rule,
                f"the state's entries must stay {sorted(first)}, got {sorted(state)}",
                first.keys() == state.keys(),
            )
            for name, value in state.items():
                old = first[name]
                _require(
                    rule,
                    f"state entry {name!r} must keep its shape and dtype, got {list(value.shape)} "
                    f"{value.dtype} after {list(old.shape)} {old.dtype}",
                    (value.shape, value.dtype) == (old.shape, old.dtype),
                )
            _require(
                rule,
                f"update and readout must be {grad.dtype} as the gradient is",
                step.update.dtype == step.readout.dtype == grad.dtype,
            )


def _check_purity(rule: UpdateRule, dim: int) -> None:
    grads = _gradients(dim)
    state, params = _run(rule, grads).state, grads[:, 1].clone()
    copies = {name: value.clone() for name, value in state.items()}
    grad = grads[:, 0].clone()
    first = rule.update(grad, state)
    rule.init(params)
    _require(
        rule,
        "update changes its arguments in place",
        torch.equal(grad, grads[:, 0]) and _equal(state, copies),
    )
    _require(rule, "init changes the parameters", torch.equal(params, grads[:, 1]))
    second = rule.update(grad, state)
    _require(
        rule,
        "update does not repeat: it must depend on its arguments alone",
        _equal(_parts(first), _parts(second)),
    )


def _check_independence(rule: UpdateRule, dim: int) -> None:
    grads = _gradients(dim)
    whole, half = _run(rule, grads), _run(rule, grads[:, :2])
    for name, index in (
        ("a permutation of the problems does not permute updates", [3, 1, 4, 0, 2]),
        ("selected problems do not run as they would alone", [4, 1]),
        ("a problem does not run as it would alone", [2]),
    ):
        chosen = torch.tensor(index)
        alone = _run(rule, grads[chosen])
        later = _run(rule, grads[chosen, 2:], select_state(half.state, chosen))
        expected = UpdateStep(whole.update[chosen], whole.readout[chosen], _at(whole, chosen))
        _require(rule, name, _close(alone, expected, _EXACT))
        rest = UpdateStep(expected.update[:, 2:], expected.readout[:, 2:], expected.state)
        _require(rule, name, _close(later, rest, _EXACT))
    poisoned, others = grads.clone(), torch.tensor([0, 1, 3, 4])
    poisoned[2, 1] = torch.nan
    found = _run(rule, poisoned)
    _require(
        rule,
        "a problem whose gradient is NaN changes the updates of others",
        _close(
            UpdateStep(found.update[others], found.readout[others], _at(found, others)),
            UpdateStep(whole.update[others], whole.readout[others], _at(whole, others)),
            _EXACT,
        ),
    )


def _check_precision(rule: UpdateRule, dim: int) -> None:
    grads = _gradients(dim)
    found = _run(_in_dtype(rule, torch.float32), grads.float())
    _require(
        rule,
        "float32 and float64 disagree",
        found.update.dtype == torch.float32 and _close(found, _run(rule, grads), _SINGLE),
    )


def _check_zero_gradients(rule: UpdateRule, dim: int) -> None:
    grads = _gradients(dim)
    for state in (None, _run(rule, grads).state):
        found = _run(rule, torch.zeros_like(grads), state)
        _require(
            rule,
            "gradients of zeros give updates, read-outs or states that are not finite",
            all(bool(value.isfinite().all()) for value in _parts(found).values()),
        )


def _check_steps_in_place(rule: UpdateRule, dim: int) -> None:
    grads = _gradients(dim)
    expected = _run(rule, grads)
    found = _run(prepare(rule), grads, step=update_)
    _require(rule, "steps in place differ from update", _close(found, expected, _EXACT))


def _check_chunks(rule: UpdateRule, dim: int) -> None:
    if not isinstance(rule, SupportsChunks):
        return
    grads = _gradients(dim)
    state, grad = _run(rule, grads[:, 1:]).state, grads[:, 0]
    whole, pooled = rule.update(grad, state), PooledGradient.of(grad)
    readout = torch.zeros_like(whole.readout)
    for span in (slice(0, dim // 2), slice(dim // 2, dim)):
        if span.start == span.stop:
            continue
        own = {name: value.clone() for name, value in _some(state, span, dim).items()}
        step = update_chunk(rule, grad[:, span], own, pooled)
        readout = readout + step.readout * step.update.shape[1]
        _require(
            rule,
            "a step in chunks differs from a step of all coordinates",
            _equal_or_close(step.update, whole.update[:, span])
            and _close_states(step.state, _some(whole.state, span, dim), _EXACT),
        )
    _require(
        rule,
        "the read-outs of chunks are not means over their coordinates",
        _equal_or_close(readout / dim, whole.readout),
    )


def _check_graph(rule: UpdateRule, dim: int) -> None:
    grads = _gradients(dim)
    first = _run(rule, grads[:, :1]).state
    expected = _run(rule, grads, first)
    _require(
        rule,
        "update differs where gradients are enabled",
        _close(_run(rule, grads, first, graph=True), expected, _EXACT),
    )
    if not isinstance(rule, SupportsBackpropagation):
        return
    cotangents = UpdateStep(
        _normal(expected.update.shape, 3), _normal(expected.readout.shape, 4), first
    )
    results: list[dict[str, Tensor]] = []
    for function in (backpropagate, backpropagate_by_autograd):
        own = _in_dtype(rule, torch.float64)
        of_state = function(own, grads, first, cotangents, wants_state=True)
        weights = own.named_parameters() if isinstance(own, nn.Module) else ()
        of_weights = {name: w.grad.flatten() for name, w in weights if w.grad is not None}
        results.append({**{f"state.{name}": g for name, g in of_state.items()}, **of_weights})
    found_grads, expected_grads = results
    zero = torch.zeros(())  # of what is missing
    _require(
        rule,
        "backpropagate differs from autograd through update",
        all(
            _equal_or_close(found_grads.get(name, zero), expected_grads.get(name, zero))
            for name in found_grads.keys() | expected_grads.keys()
        ),
    )


# ------------------------------------------------------------------------------ helpers


def _gradients(dim: int) -> Tensor:
    """Of a few steps and scales, shape [B, T, D]."""
    scale = 10.0 ** torch.linspace(-2, 2, _NUM_ITEMS, dtype=torch.float64)
    return _normal((_NUM_ITEMS, _NUM_STEPS, dim), 1) * scale.view(-1, 1, 1)


def _normal(shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def _in_dtype(rule: UpdateRule, dtype: torch.dtype) -> UpdateRule:
    """A copy with its weights in another dtype."""
    rule = copy.deepcopy(rule)
    if isinstance(rule, nn.Module):
        rule.to(dtype)
    return rule


def _run(
    rule: UpdateRule,
    grads: Tensor,
    state: State | None = None,
    step: Callable[[UpdateRule, Tensor, State], UpdateStep] | None = None,
    *,
    graph: bool = False,
) -> UpdateStep:
    """Updates [B, T, D], read-outs [B, T, R] and last state, by one call for each gradient."""
    state = rule.init(torch.zeros_like(grads[:, 0])) if state is None else state
    state = {name: value.clone() for name, value in state.items()} if step else state
    updates, readouts = [], []
    with torch.set_grad_enabled(graph):
        for grad in grads.clone().unbind(1):
            taken = step(rule, grad, state) if step else rule.update(grad, state)
            updates.append(taken.update.clone())
            readouts.append(taken.readout.clone())
            state = taken.state
    return UpdateStep(torch.stack(updates, 1), torch.stack(readouts, 1), state)


def _at(step: UpdateStep, index: Tensor) -> State:
    return select_state(step.state, index)


def _some(state: State, span: slice, dim: int) -> State:
    """What belongs to some coordinates; entries of another second dimension belong to all."""
    return {
        name: value[:, span] if value.ndim > 1 and value.shape[1] == dim else value
        for name, value in state.items()
    }


def _parts(step: UpdateStep) -> dict[str, Tensor]:
    return {"": step.update, ".": step.readout, **step.state}


def _equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(found[name], value) for name, value in expected.items())


def _close(found: UpdateStep, expected: UpdateStep, tolerance: float) -> bool:
    return _close_states(_parts(found), _parts(expected), tolerance)


def _close_states(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> bool:
    return found.keys() == expected.keys() and all(
        _equal_or_close(found[name], value, tolerance) for name, value in expected.items()
    )


def _equal_or_close(found: Tensor, expected: Tensor, tolerance: float = _EXACT) -> bool:
    """Whether numbers agree to a fraction of the largest of their problem."""
    found, expected = found.detach().double(), expected.detach().double()
    if found.numel() == 0 or expected.numel() == 0:
        return found.numel() == expected.numel()
    size = expected.abs().amax()
    if expected.ndim > 1:
        size = expected.abs().amax(tuple(range(1, expected.ndim)), keepdim=True)
    return bool(((found - expected).abs() <= tolerance * size + 1e-30).all())
