"""One step of a rule on tensors of any shape: in place, and chunk by chunk to bound its memory.

Two passes over the gradients: the first pools what coordinates know of each other, the second
moves them. Sums run in float64.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.tensors import log_rms, nested_state, sub_state, widened
from haltwise._kernels import one_thread
from haltwise.processes.signals import init_signals, sum_products
from haltwise.update_rules import (
    PartitionedRule,
    PooledGradient,
    State,
    SupportsChunks,
    UpdateRule,
    update_chunk,
)

__all__ = ["UpdateStatistics", "init_state", "leaves", "move", "pool", "working_dtype"]


def working_dtype(param: Tensor) -> torch.dtype:
    """In which a tensor is moved and its state kept: float32, or float64 if it is."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def leaves(rule: UpdateRule, dim: int) -> list[tuple[UpdateRule, int]]:
    """The rules that move consecutive ranges of `dim` coordinates, and the sizes of these.

    Raises:
        InputError: The ranges do not make up so many.
    """
    if not isinstance(rule, PartitionedRule):
        return [(rule, dim)]
    pairs = zip(rule.rules, rule.sizes_of(dim), strict=True)
    return [leaf for own, size in pairs for leaf in leaves(own, size)]


def _gradients(param: Tensor, chunk_size: int, *, maximize: bool) -> Iterator[Tensor]:
    """The gradient to descend, in pieces [1, M] of at most `chunk_size`."""
    assert param.grad is not None
    for piece in param.grad.detach().reshape(1, -1).split(chunk_size, 1):
        grad = piece.to(working_dtype(param))
        yield -grad if maximize else grad


@one_thread()
def pool(
    tensors: Iterable[tuple[UpdateRule, Tensor, State]], chunk_size: int, *, maximize: bool
) -> PooledGradient:
    """What is pooled of the gradients of tensors, each [1]; NaN or infinite if one of them is.

    Args:
        tensors: Those that a rule moves together; the rule where each is, and what is remembered.
        chunk_size: Coordinates at once.
        maximize: Whether to ascend.
    """
    totals, logs, own, num = [], [], [], 0
    for rule, param, state in tensors:
        kept, begin = sub_state(state, "rule."), 0
        for grad in _gradients(param, chunk_size, maximize=maximize):
            totals.append(grad.sum(1, dtype=widened(grad[:, :0]).dtype))
            logs.append(2 * widened(log_rms(grad)) + math.log(grad.shape[1]))
            if isinstance(rule, SupportsChunks):
                span = slice(begin, begin + grad.shape[1])
                part = {
                    name: _working(_part(value, span, param.numel()), grad.dtype)
                    for name, value in kept.items()
                }
                sums = rule.sums(grad, part)
                own += [] if sums is None else [widened(sums)]
            begin += grad.shape[1]
        num += begin
    device = totals[0].device  # a model may be spread over several

    def together(values: list[Tensor]) -> Tensor:
        return torch.stack([value.to(device) for value in values])

    return PooledGradient(
        together(totals).sum(0) / num,
        (together(logs).logsumexp(0) - math.log(num)) / 2,
        together(own).sum(0) if own else None,
    )


def init_state(rule: UpdateRule, param: Tensor, state_dtype: torch.dtype | None = None) -> State:
    """What is remembered of a tensor of N entries, before its first step.

    Entries of shape [1, N, ...] belong to its coordinates, others to the tensor. `touched` marks
    the coordinates that have had a gradient other than zero. The rule's entries of coordinates are
    kept in `state_dtype`, if given.
    """
    like = param.new_zeros((), dtype=working_dtype(param)).expand(1, param.numel())
    fresh = {
        **nested_state(rule.init(like), "rule."),
        **nested_state(init_signals(like), "signals."),
    }
    state: State = {}
    for name, value in fresh.items():
        # Rules may begin with one tensor of zeros for all; ours are written to.
        shared = any(value.data_ptr() == other.data_ptr() for other in state.values())
        state[name] = value.clone(memory_format=torch.contiguous_format) if shared else value
    # By its shape alone, what is of a tensor of one entry might be of its coordinate.
    of_two = {} if state_dtype is None else rule.init(like[:, :1].expand(1, 2))
    for name, value in nested_state(of_two, "rule.").items():
        of_coordinates = _of_coordinates(value, 2) and _of_coordinates(state[name], param.numel())
        if value.is_floating_point() and of_coordinates:
            state[name] = state[name].to(state_dtype)
    state["touched"] = torch.zeros_like(like, dtype=torch.bool)
    return state


@final
class UpdateStatistics(NamedTuple):
    """What the halter needs to know of the coordinates moved; sums over them."""

    readout: Tensor
    """Shape [1, R]."""
    products: Tensor
    """See `sum_products`, shape [1, 5, 5]."""


@one_thread()
def move(
    rule: UpdateRule,
    param: Tensor,
    state: State,
    pooled: PooledGradient,
    *,
    lr: float,
    weight_decay: float,
    maximize: bool,
    chunk_size: int,
) -> UpdateStatistics:
    """Advance the state of a tensor in place; its displacement is left in `signals.update`.

    The rule is in the tensor's working dtype and on its device, `pooled` is of all the rule's
    coordinates, and the tensor itself is left untouched.
    """
    size, dtype = param.numel(), working_dtype(param)
    pooled = PooledGradient(
        pooled.mean.to(param.device, dtype),
        pooled.log_rms.to(param.device, dtype),
        None if pooled.sums is None else pooled.sums.to(param.device, dtype),
    )
    values = param.detach().reshape(1, -1) if weight_decay else None
    own, last = sub_state(state, "rule."), sub_state(state, "signals.")
    of_tensor: State = {}
    readout = products = torch.zeros((), device=param.device)
    begin = 0
    for grad in _gradients(param, chunk_size, maximize=maximize):
        span = slice(begin, begin + grad.shape[1])
        old = {name: _part(value, span, size) for name, value in own.items()}
        given = {name: _working(value, dtype) for name, value in old.items()}
        step = update_chunk(rule, grad, given, pooled)
        state["touched"][:, span] |= grad != 0
        update = lr * step.update
        if values is not None:
            update -= lr * weight_decay * values[:, span].to(dtype)
        memory = {name: value[:, span] for name, value in last.items()}
        readout = readout + widened(step.readout) * grad.shape[1]
        products = products + sum_products(
            widened(grad), widened(update), {name: widened(value) for name, value in memory.items()}
        )
        for name, value in step.state.items():
            if _of_coordinates(own[name], size):
                if value.data_ptr() != old[name].data_ptr():
                    old[name].copy_(value)
            else:
                of_tensor[name] = value  # every chunk begins with the old one
        memory["grad"].copy_(grad)
        memory["update"].copy_(update)
        begin = span.stop
    for name, value in of_tensor.items():
        own[name].copy_(value)
    return UpdateStatistics(readout, products)


def _working(value: Tensor, dtype: torch.dtype) -> Tensor:
    """An entry of a state in the dtype that is computed in."""
    return value.to(dtype) if value.is_floating_point() else value


def _of_coordinates(value: Tensor, size: int) -> bool:
    """Whether an entry of a state is of a tensor's coordinates, of which there are `size`."""
    return value.ndim > 1 and value.shape[1] == size


def _part(value: Tensor, span: slice, size: int) -> Tensor:
    return value[:, span] if _of_coordinates(value, size) else value
