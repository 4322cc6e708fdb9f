"""One step of a rule on tensors of any shape: in place, and chunk by chunk to bound its memory.

Two passes over the gradients: the first pools what coordinates know of each other, the second
moves them. Sums run in float64.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

__all__ = ["UpdateStatistics", "alike", "init_state", "leaves", "move", "pool", "working_dtype"]


_GATHERED = 16  # bytes of states that are gathered at most, for each coordinate of a chunk


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


def alike(
    params: Iterable[Tensor], states: Mapping[Tensor, State], chunk_size: int
) -> Iterator[list[Tensor]]:
    """Tensors to pool and move at once, as rows: of one size, on one device, in one dtype.

    Networks repeat layers, and small tensors take less time to compute on than to call for. Their
    states are gathered for it, which large ones are not worth.
    """
    kinds: dict[object, list[Tensor]] = {}
    for param in params:
        kinds.setdefault((param.numel(), working_dtype(param), param.device), []).append(param)
    for own in kinds.values():
        kept = states[own[0]].values()
        num_bytes = sum(value.nbytes for value in kept if isinstance(value, Tensor))
        most = min(chunk_size // own[0].numel(), _GATHERED * chunk_size // num_bytes)
        number = max(1, most)
        yield from (own[first : first + number] for first in range(0, len(own), number))


def _pieces(
    params: Sequence[Tensor], chunk_size: int, *, maximize: bool
) -> Iterator[tuple[slice, Tensor]]:
    """The gradients to descend of B alike tensors, [B, M] of at most `chunk_size`, and which."""
    dtype, size = working_dtype(params[0]), params[0].numel()
    grads = [param.grad.detach().reshape(1, -1) for param in params if param.grad is not None]
    for first in range(0, size, chunk_size if len(params) == 1 else size):
        span = slice(first, min(first + chunk_size, size))
        grad = _together([each[:, span].to(dtype) for each in grads])
        yield span, -grad if maximize else grad


def _together(rows: Sequence[Tensor]) -> Tensor:
    """Rows [1, ...] as one tensor [B, ...]; a single one as it is."""
    return rows[0] if len(rows) == 1 else torch.cat([*rows])


def _store(places: Sequence[Tensor], value: Tensor) -> None:
    """Write rows where they belong, unless they were changed there."""
    if len(places) > 1:
        torch._foreach_copy_([*places], [*value.split(1)])
    elif value.data_ptr() != places[0].data_ptr():
        places[0].copy_(value)


@one_thread()
def pool(
    tensors: Iterable[tuple[UpdateRule, Sequence[Tensor], Sequence[State]]],
    chunk_size: int,
    *,
    maximize: bool,
) -> PooledGradient:
    """What is pooled of the gradients of tensors, each [1]; NaN or infinite if one of them is.

    Args:
        tensors: Those that a rule moves together, in alike ones; the rule where each is, and what
            is remembered.
        chunk_size: Coordinates at once.
        maximize: Whether to ascend.
    """
    totals, logs, own, num = [], [], [], 0
    for rule, params, states in tensors:
        kept, size = [sub_state(state, "rule.") for state in states], params[0].numel()
        for span, grad in _pieces(params, chunk_size, maximize=maximize):
            totals.append(grad.sum(1, dtype=widened(grad[:, :0]).dtype))
            logs.append(2 * widened(log_rms(grad)) + math.log(grad.shape[1]))
            if isinstance(rule, SupportsChunks):
                part = {
                    name: _working(
                        _together([_part(each[name], span, size) for each in kept]), grad.dtype
                    )
                    for name in kept[0]
                }
                sums = rule.sums(grad, part)
                own += [] if sums is None else [widened(sums)]
        num += size * len(params)
    device = totals[0].device  # a model may be spread over several

    def joined(values: list[Tensor]) -> Tensor:
        return torch.cat([value.to(device) for value in values]).unsqueeze(1)

    return PooledGradient(
        joined(totals).sum(0) / num,
        (joined(logs).logsumexp(0) - math.log(num)) / 2,
        joined(own).sum(0) if own else None,
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
    params: Sequence[Tensor],
    states: Sequence[State],
    pooled: PooledGradient,
    *,
    lr: float,
    weight_decay: float,
    maximize: bool,
    chunk_size: int,
) -> UpdateStatistics:
    """Advance the states of B alike tensors in place; displacements are left in `signals.update`.

    The rule is in the tensors' working dtype and on their device, `pooled` is of all the rule's
    coordinates, and the tensors themselves are left untouched.
    """
    size, dtype, device = params[0].numel(), working_dtype(params[0]), params[0].device

    def of_each(value: Tensor) -> Tensor:
        return value.to(device, dtype).expand(len(params), *value.shape[1:])

    given_pooled = PooledGradient(
        of_each(pooled.mean),
        of_each(pooled.log_rms),
        None if pooled.sums is None else of_each(pooled.sums),
    )
    values = [param.detach().reshape(1, -1) for param in params] if weight_decay else []
    own, last = ([sub_state(state, part) for state in states] for part in ("rule.", "signals."))
    of_tensor: State = {}
    readout = products = torch.zeros((), device=device)
    for span, grad in _pieces(params, chunk_size, maximize=maximize):
        places = {name: [_part(each[name], span, size) for each in own] for name in own[0]}
        given = {name: _working(_together(rows), dtype) for name, rows in places.items()}
        step = update_chunk(rule, grad, given, given_pooled)
        update = lr * step.update
        if values:
            update -= lr * weight_decay * _together([each[:, span].to(dtype) for each in values])
        memory = {name: [each[name][:, span] for each in last] for name in last[0]}
        before = {name: widened(_together(rows)) for name, rows in memory.items()}
        readout = readout + _summed(widened(step.readout)) * grad.shape[1]
        products = products + _summed(sum_products(widened(grad), widened(update), before))
        for name, value in step.state.items():
            if _of_coordinates(own[0][name], size):
                _store(places[name], value)
            else:
                of_tensor[name] = value  # every chunk begins with the old one
        touched = [state["touched"][:, span] for state in states]
        _store(touched, _together(touched) | (grad != 0))
        _store(memory["grad"], grad)
        _store(memory["update"], update)
    for name, value in of_tensor.items():
        _store([each[name] for each in own], value)
    return UpdateStatistics(readout, products)


def _summed(value: Tensor) -> Tensor:
    """The sum over tensors, [1, ...]."""
    return value if len(value) == 1 else value.sum(0, keepdim=True)


def _working(value: Tensor, dtype: torch.dtype) -> Tensor:
    """An entry of a state in the dtype that is computed in."""
    return value.to(dtype) if value.is_floating_point() else value


def _of_coordinates(value: Tensor, size: int) -> bool:
    """Whether an entry of a state is of a tensor's coordinates, of which there are `size`."""
    return value.ndim > 1 and value.shape[1] == size


def _part(value: Tensor, span: slice, size: int) -> Tensor:
    return value[:, span] if _of_coordinates(value, size) else value
