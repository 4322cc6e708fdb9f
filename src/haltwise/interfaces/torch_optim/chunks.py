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

__all__ = [
    "Row",
    "UpdateStatistics",
    "by_place",
    "gathered",
    "init_state",
    "leaves",
    "move",
    "pool",
    "rows",
    "working_dtype",
]


_GATHERED = 16  # bytes of states that are gathered at most, for each coordinate of a chunk


def working_dtype(param: Tensor) -> torch.dtype:
    """In which a tensor is moved and its state kept: float32, or float64 if it is."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def by_place(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors by the device that they are on and the dtype that they are moved in."""
    places: dict[object, list[Tensor]] = {}
    for param in params:
        places.setdefault((param.device, working_dtype(param)), []).append(param)
    return [*places.values()]


def leaves(rule: UpdateRule, dim: int) -> list[tuple[UpdateRule, int]]:
    """The rules that move consecutive ranges of `dim` coordinates, and the sizes of these.

    Raises:
        InputError: The ranges do not make up so many.
    """
    if not isinstance(rule, PartitionedRule):
        return [(rule, dim)]
    pairs = zip(rule.rules, rule.sizes_of(dim), strict=True)
    return [leaf for own, size in pairs for leaf in leaves(own, size)]


@final
class Row(NamedTuple):
    """Tensors that are pooled and moved at once, as one row of coordinates.

    Attributes:
        rule: That moves them, where they are and in their working dtype.
        params: One, or several small ones.
        states: The rule's, of each.
        signals: What signals are measured with, of each.
        touched: Which coordinates of each have had a gradient other than zero.
        shared: Names of the entries of the rule's state that are of a tensor, and here equal.
        chunk_size: Coordinates of a single one that are moved at once.
    """

    rule: UpdateRule
    params: list[Tensor]
    states: list[State]
    signals: list[State]
    touched: list[Tensor]
    shared: frozenset[str]
    chunk_size: int


def rows(
    rule: UpdateRule, params: Sequence[Tensor], states: Mapping[Tensor, State], chunk_size: int
) -> Iterator[Row]:
    """Tensors to pool and move at once; all are on one device and have one working dtype.

    Coordinates know of each other what is pooled and what is remembered of their tensor. Where
    that is the same, as of tensors that have moved together from the start, they need not be of
    one tensor. Small tensors take less time to compute on than to call for; their states are
    gathered for it, which large ones are not worth.
    """
    shared = _entries_of_tensors(rule, params[0])
    kept = {param: sub_state(states[param], "rule.") for param in params}
    kinds: dict[bytes, list[Tensor]] = {}
    for param, remembered in zip(params, _remembered([*kept.values()], shared), strict=True):
        kinds.setdefault(remembered, []).append(param)
    for own in kinds.values():
        entries = kept[own[0]].items()
        num_bytes = sum(value.nbytes for name, value in entries if name not in shared)
        most = _GATHERED * chunk_size * own[0].numel() // max(num_bytes, 1)
        for some in gathered(own, min(most, chunk_size)):
            yield Row(
                rule,
                some,
                [kept[param] for param in some],
                [sub_state(states[param], "signals.") for param in some],
                [states[param]["touched"] for param in some],
                shared,
                chunk_size,
            )


def _entries_of_tensors(rule: UpdateRule, like: Tensor) -> frozenset[str]:
    """Names of the entries of a rule's state whose shape does not depend on how many it moves."""
    zero = like.new_zeros((), dtype=working_dtype(like))
    two, three = (rule.init(zero.expand(1, size)) for size in (2, 3))
    return frozenset(name for name in two if two[name].shape == three[name].shape)


def _remembered(states: Sequence[State], shared: Iterable[str]) -> list[bytes]:
    """The numbers that are remembered of each tensor as a whole, as bytes."""
    num = len(states)
    if num == 1:
        return [b""]
    entries = [torch.stack([state[name] for state in states]) for name in shared]
    numbers = [entry.reshape(num, -1).cpu().view(torch.uint8).numpy() for entry in entries]
    return [b"".join(own[place].tobytes() for own in numbers) for place in range(num)]


def gathered(params: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Tensors in lists of at most `most` coordinates, in which larger ones are alone."""
    row: list[Tensor] = []
    size = 0
    for param in params:
        if param.numel() > most:
            yield [param]
            continue
        if size + param.numel() > most:
            yield row
            row, size = [], 0
        row.append(param)
        size += param.numel()
    if row:
        yield row


def _pieces(row: Row, *, maximize: bool) -> Iterator[tuple[slice, Tensor]]:
    """The gradients to descend, [1, M], and where they are in the tensor, if it is one."""
    params, dtype = row.params, working_dtype(row.params[0])
    grads = [param.grad.detach().reshape(1, -1) for param in params if param.grad is not None]
    size = grads[0].shape[1] if len(params) == 1 else 1
    for first in range(0, size, row.chunk_size):
        span = slice(first, first + row.chunk_size) if len(params) == 1 else slice(None)
        grad = _together([each[:, span].to(dtype) for each in grads])
        yield span, -grad if maximize else grad


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Parts [1, N, ...] of a row; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], 1)


def _store(places: Sequence[Tensor], value: Tensor) -> None:
    """Write parts of a row where they belong, unless they were changed there."""
    if len(places) > 1:
        sizes = [place.shape[1] for place in places]
        torch._foreach_copy_([*places], [*value.split(sizes, 1)])
    elif value.data_ptr() != places[0].data_ptr():
        places[0].copy_(value)


@one_thread()
def pool(rows: Iterable[Row], *, maximize: bool) -> PooledGradient:
    """What is pooled of the gradients of a rule's tensors, each [1].

    It is NaN or infinite if one of them is.

    Args:
        rows: All that the rule moves together.
        maximize: Whether to ascend.
    """
    totals, logs, own, num = [], [], [], 0
    for row in rows:
        for span, grad in _pieces(row, maximize=maximize):
            totals.append(grad.sum(1, dtype=widened(grad[:, :0]).dtype))
            logs.append(2 * widened(log_rms(grad)) + math.log(grad.shape[1]))
            if isinstance(row.rule, SupportsChunks):
                sums = row.rule.sums(grad, _given(row, span, grad.dtype))
                own += [] if sums is None else [widened(sums)]
            num += grad.shape[1]
    device = totals[0].device  # a model may be spread over several

    def joined(values: list[Tensor]) -> Tensor:
        return torch.cat([value.to(device) for value in values]).unsqueeze(1)

    return PooledGradient(
        joined(totals).sum(0) / num,
        (joined(logs).logsumexp(0) - math.log(num)) / 2,
        joined(own).sum(0) if own else None,
    )


def _given(row: Row, span: slice, dtype: torch.dtype) -> State:
    """The rule's state of a piece of a row, in the dtype that is computed in."""
    given = {
        name: value.clone()  # the rule may write to it, and every chunk begins with the old one
        if name in row.shared
        else _together([state[name][:, span] for state in row.states])
        for name, value in row.states[0].items()
    }
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in given.items()
    }


def _apart(state: State, given: State) -> State:
    """What a rule has made of the state that it was given, to be stored there entry by entry.

    It may return what was another entry, whose memory is written to before.
    """
    held = {value.untyped_storage().data_ptr() for value in given.values()}
    apart = {}
    for name, value in state.items():
        own = given[name]
        stays = value.data_ptr() == own.data_ptr() and value.stride() == own.stride()
        is_of_others = not stays and value.untyped_storage().data_ptr() in held
        apart[name] = value.clone() if is_of_others else value
    return apart


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
    if state_dtype is not None:
        of_tensors = _entries_of_tensors(rule, param)
        for name, value in sub_state(state, "rule.").items():
            if value.is_floating_point() and name not in of_tensors:
                state[f"rule.{name}"] = value.to(state_dtype)
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
    row: Row, pooled: PooledGradient, *, lr: float, weight_decay: float, maximize: bool
) -> UpdateStatistics:
    """Advance the states of a row in place; displacements are left in `signals.update`.

    `pooled` is of all the rule's coordinates. The tensors themselves are left untouched.
    """
    params, dtype, device = row.params, working_dtype(row.params[0]), row.params[0].device
    pooled = PooledGradient(
        pooled.mean.to(device, dtype),
        pooled.log_rms.to(device, dtype),
        None if pooled.sums is None else pooled.sums.to(device, dtype),
    )
    values = [param.detach().reshape(1, -1) for param in params] if weight_decay else []
    of_tensor: State = {}
    readout = products = torch.zeros((), device=device)
    for span, grad in _pieces(row, maximize=maximize):
        given = _given(row, span, dtype)
        step = update_chunk(row.rule, grad, given, pooled)
        update = lr * step.update
        if values:
            update -= lr * weight_decay * _together([each[:, span].to(dtype) for each in values])
        memory = {name: [each[name][:, span] for each in row.signals] for name in row.signals[0]}
        before = {name: widened(_together(parts)) for name, parts in memory.items()}
        readout = readout + widened(step.readout) * grad.shape[1]
        products = products + sum_products(widened(grad), widened(update), before)
        for name, value in _apart(step.state, given).items():
            if name in row.shared:
                of_tensor[name] = value
            else:
                _store([state[name][:, span] for state in row.states], value)
        touched = [each[:, span] for each in row.touched]
        _store(touched, _together(touched) | (grad != 0))
        _store(memory["grad"], grad)
        _store(memory["update"], update)
    for name, value in of_tensor.items():
        for state in row.states:
            state[name].copy_(value)
    return UpdateStatistics(readout, products)
