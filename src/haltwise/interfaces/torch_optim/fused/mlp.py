"""The kernels that advance the tensors of a group by the rule `mlp`.

They do what `haltwise.update_rules.mlp` does elsewhere: `align` sums over a group's coordinates,
`take_in` advances what is kept of a tensor as a whole, `advance_mlp` its coordinates; a test holds
the two together.

A thread has a row and computes its features once; matrix units, which want other rows and columns
of each thread, get all features in one tile, and give all outputs in another.
"""

import math

import torch
import triton
import triton.language as tl

from haltwise._kernels.fused.backward import tanh
from haltwise._kernels.fused.cell import narrowed, split
from haltwise.interfaces.torch_optim.fused.control import (
    CHUNK,
    COLUMNS,
    FIRST_CHUNK,
    GRAD,
    LEARNED,
    LOG_RMS,
    MODE,
    RULE,
    SIZE,
    power,
    total,
)
from haltwise.interfaces.torch_optim.fused.tensors import (
    displace,
    leave_sums,
    pointer,
    rates,
    remembered,
)
from haltwise.update_rules import mlp

__all__ = ["FACTS", "advance_mlp", "align", "take_in"]

_FAST = tl.constexpr(mlp.MOMENTA[0])
_MIDDLE = tl.constexpr(mlp.MOMENTA[1])
_SLOW = tl.constexpr(mlp.MOMENTA[2])
_SHORT = tl.constexpr(mlp.SQUARES[0])
_LONG = tl.constexpr(mlp.SQUARES[1])
_AGREEMENT = tl.constexpr(mlp.AGREEMENT)
_FEWEST = tl.constexpr(mlp.FEWEST)
_BOUND = tl.constexpr(mlp.BOUND)
_DIRECTION = tl.constexpr(mlp.DIRECTION)
_LOW = tl.constexpr(mlp.USUAL[0])
_HIGH = tl.constexpr(mlp.USUAL[1])
_RISE = tl.constexpr(mlp.RISE)
_LOWEST = tl.constexpr(math.log(mlp.SMALLEST))
_HIGHEST = tl.constexpr(math.log(mlp.LARGEST))
_LARGEST_UNIT = tl.constexpr(-0.99 * math.log(torch.finfo(torch.float32).tiny))
_PERIODS = tl.constexpr(mlp.PERIODS)
_NUM_PERIODS = tl.constexpr(len(mlp.PERIODS))
_OF_TENSOR = tl.constexpr(2 + len(mlp.PERIODS))  # features, the last
_OF_COORDINATE = tl.constexpr(mlp.NUM_FEATURES - 2 - len(mlp.PERIODS))
_FEATURES = tl.constexpr(mlp.NUM_FEATURES)

# Columns of the table, from RULE on.
_MOMENTA = tl.constexpr(0)
_SQUARES = tl.constexpr(1)
_AGREE = tl.constexpr(2)
_COUNT = tl.constexpr(3)
_LOG_UNIT = tl.constexpr(4)
_SIZES = tl.constexpr(5)
_LOG_SCALE = tl.constexpr(6)

# What coordinates read of their tensor, float32.
_INVERSE_UNIT = tl.constexpr(0)  # by which gradients are multiplied
_LEAST = tl.constexpr(1)  # added to their root mean squares
_INVERSE_SIZE = tl.constexpr(2)
_UNBIASED = tl.constexpr(3)  # corrections for the start at 0, of three momenta and two squares
_SHARED = tl.constexpr(8)  # features
_SCALE = tl.constexpr(14)  # of updates, behind the features
FACTS = tl.constexpr(16)
"""Numbers that are known of a tensor."""


@triton.jit
def _bounded(x, BOUND: tl.constexpr):
    return tl.minimum(tl.maximum(x, -BOUND), BOUND)


@triton.jit
def _average(old, new, KEPT: tl.constexpr):
    return old * KEPT + new * (1 - KEPT)


@triton.jit
def _unbias(KEPT: tl.constexpr, steps):
    return 1 / (1 - power(KEPT, steps))


@triton.jit
def align(
    table,
    owner,
    first_chunk,
    num_chunks,
    settings,
    control,
    sums,
    GRAD_DTYPE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Products of gradients and momenta, [programs, 3], as `MLPRule.sums` says."""
    if tl.load(control + MODE) == LEARNED:
        sign, _, _ = rates(settings)
        product = tl.zeros((CHUNK,), tl.float64)
        gg = product
        mm = product
        for chunk in range(
            first_chunk + tl.program_id(0), first_chunk + num_chunks, tl.num_programs(0)
        ):
            entry = table + tl.load(owner + chunk) * COLUMNS
            at = (chunk - tl.load(entry + FIRST_CHUNK)) * CHUNK + tl.arange(0, CHUNK)
            known = at < tl.load(entry + SIZE)
            grad = tl.load(pointer(entry + GRAD, GRAD_DTYPE) + at, mask=known, other=0.0)
            momenta = pointer(entry + RULE + _MOMENTA, DTYPE) + 3 * at + _DIRECTION
            momentum = tl.load(momenta, mask=known, other=0.0).to(tl.float64)
            log_unit = tl.load(pointer(entry + RULE + _LOG_UNIT, tl.float32)).to(tl.float64)
            grad = grad.to(tl.float32) * sign * tl.exp(-log_unit).to(tl.float32)
            grad = _bounded(grad, 1e12).to(tl.float64)
            product += grad * momentum
            gg += grad * grad
            mm += momentum * momentum
        own = sums + 3 * tl.program_id(0)
        tl.store(own, tl.sum(product, 0))
        tl.store(own + 1, tl.sum(gg, 0))
        tl.store(own + 2, tl.sum(mm, 0))


@triton.jit
def take_in(table, first_tensor, control, sums, num_sums, gain, facts):
    """Advance what is kept of each tensor as a whole, and leave in `facts` what is known of it.

    A program is given a tensor. All is computed in float64, which single numbers can afford.
    """
    tensor = first_tensor + tl.program_id(0)
    own = table + tensor * COLUMNS + RULE
    count_at = pointer(own + _COUNT, tl.float32)
    log_unit_at = pointer(own + _LOG_UNIT, tl.float32)
    sizes_at = pointer(own + _SIZES, tl.float32)
    log_scale_at = pointer(own + _LOG_SCALE, tl.float32)
    if tl.load(control + MODE) == LEARNED:
        log_size = tl.load(control + LOG_RMS)
        count = tl.load(count_at).to(tl.float64)
        log_unit = tl.load(log_unit_at)
        sizes = tl.load(sizes_at).to(tl.float64)
        begins = count == 0
        is_nothing = log_size < -80
        count = tl.where(begins & is_nothing, count, count + 1)
        within = tl.minimum(tl.maximum(log_size, -80.0), _LARGEST_UNIT).to(tl.float32)
        log_unit = tl.where(begins, within, log_unit)
        change = log_size - log_unit.to(tl.float64)
        sizes = _average(sizes, tl.exp(2 * _bounded(change, 30.0)), _SHORT)
        steps = tl.maximum(count, 1.0)
        size = tl.sqrt(sizes * _unbias(_SHORT, steps))
        log_of_size = tl.log(size)
        log_scale = tl.load(log_scale_at).to(tl.float64)
        product = total(sums, num_sums, 3)
        gg, mm = total(sums + 1, num_sums, 3), total(sums + 2, num_sums, 3)
        cosine = tl.where((gg > 0) & (mm > 0), product / tl.sqrt(gg) / tl.sqrt(mm), 0.0)
        turn = tl.maximum(cosine - _HIGH, 0.0) * _RISE - tl.maximum(-(cosine - _LOW), 0.0)
        log_scale = tl.minimum(tl.maximum(log_scale + gain * turn, _LOWEST), _HIGHEST)
        known = facts + tensor * FACTS
        tl.debug_barrier()  # all threads have read
        tl.store(count_at, count.to(tl.float32))
        tl.store(log_unit_at, log_unit)
        tl.store(sizes_at, sizes.to(tl.float32))
        tl.store(log_scale_at, log_scale.to(tl.float32))
        tl.store(known + _SCALE, tl.exp(log_scale).to(tl.float32))
        tl.store(known + _INVERSE_UNIT, tl.exp(-log_unit.to(tl.float64)).to(tl.float32))
        tl.store(known + _LEAST, (size * _FEWEST + 1e-30).to(tl.float32))
        tl.store(known + _INVERSE_SIZE, (1 / size).to(tl.float32))
        tl.store(known + _UNBIASED, _unbias(_FAST, steps).to(tl.float32))
        tl.store(known + _UNBIASED + 1, _unbias(_MIDDLE, steps).to(tl.float32))
        tl.store(known + _UNBIASED + 2, _unbias(_SLOW, steps).to(tl.float32))
        tl.store(known + _UNBIASED + 3, _unbias(_SHORT, steps).to(tl.float32))
        tl.store(known + _UNBIASED + 4, _unbias(_LONG, steps).to(tl.float32))
        tl.store(known + _SHARED, _bounded(change - log_of_size, _BOUND).to(tl.float32))
        tl.store(known + _SHARED + 1, _bounded(log_of_size, _BOUND).to(tl.float32))
        for index in tl.static_range(_NUM_PERIODS):
            fading = tl.exp(-steps / _PERIODS[index])
            tl.store(known + _SHARED + 2 + index, fading.to(tl.float32))


@triton.jit
def _log(x):
    """Of at least what a feature can show."""
    return tl.log(tl.maximum(x, 1e-30))


@triton.jit
def _look(own, known, grad, at, row, exists, DTYPE: tl.constexpr):
    """Take in the gradients of rows, and keep what is remembered of them.

    Returns:
        The normalised gradients and momenta, and the features of coordinates.
    """
    momenta = pointer(own + _MOMENTA, DTYPE) + 3 * at + 3 * row
    squares = pointer(own + _SQUARES, DTYPE) + 2 * at + 2 * row
    agreements = pointer(own + _AGREE, DTYPE) + at + row
    fast = tl.load(momenta, mask=exists, other=0.0).to(tl.float32)
    middle = tl.load(momenta + 1, mask=exists, other=0.0).to(tl.float32)
    slow = tl.load(momenta + 2, mask=exists, other=0.0).to(tl.float32)
    short = tl.load(squares, mask=exists, other=0.0).to(tl.float32)
    long = tl.load(squares + 1, mask=exists, other=0.0).to(tl.float32)
    agree = tl.load(agreements, mask=exists, other=0.0).to(tl.float32)
    tl.debug_barrier()  # threads may share a row, which one of them writes
    new = _bounded(grad * tl.load(known + _INVERSE_UNIT), 1e12)
    fast = _average(fast, new, _FAST)
    middle = _average(middle, new, _MIDDLE)
    slow = _average(slow, new, _SLOW)
    short = _average(short, new * new, _SHORT)
    long = _average(long, new * new, _LONG)
    tl.store(momenta, narrowed(fast, DTYPE), mask=exists)
    tl.store(momenta + 1, narrowed(middle, DTYPE), mask=exists)
    tl.store(momenta + 2, narrowed(slow, DTYPE), mask=exists)
    tl.store(squares, narrowed(short, DTYPE), mask=exists)
    tl.store(squares + 1, narrowed(long, DTYPE), mask=exists)
    root = tl.sqrt(long * tl.load(known + _UNBIASED + 4)) + tl.load(known + _LEAST)
    new = _bounded(new / root, _BOUND)
    fast = _bounded(fast * tl.load(known + _UNBIASED) / root, _BOUND)
    middle = _bounded(middle * tl.load(known + _UNBIASED + 1) / root, _BOUND)
    slow = _bounded(slow * tl.load(known + _UNBIASED + 2) / root, _BOUND)
    agree = _average(agree, new * fast, _AGREEMENT)
    tl.store(agreements, narrowed(agree, DTYPE), mask=exists)
    recent = tl.sqrt(short * tl.load(known + _UNBIASED + 3))
    features = (
        new * new, fast * fast, middle * middle, slow * slow,
        new * fast, new * middle, new * slow, fast * middle, fast * slow, middle * slow,
        agree, _log(root * tl.load(known + _INVERSE_SIZE)) / 2, _log(recent / root),
    )  # fmt: skip
    return (new, fast, middle, slow), features


@triton.jit
def _of_tensor(packed, known, UNITS: tl.constexpr):
    """What features that a tensor's coordinates share add to the first layer, bias included."""
    unit = tl.arange(0, UNITS)
    total = tl.load(packed + _FEATURES * UNITS + unit)
    for index in tl.static_range(_OF_TENSOR):
        weight = tl.load(packed + (_OF_COORDINATE + index) * UNITS + unit)
        total += tl.load(known + _SHARED + index) * weight
    return total


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _product(x, weight, more):
    """`more` + x times a weight that is split, as exact as `cell.py` says."""
    high, low = split(x)
    more = tl.dot(low, weight[0], more)
    more = tl.dot(high, weight[1], more)
    return tl.dot(high, weight[0], more)


@triton.jit
def _beside(a, b, c, d):
    """Four in two new dimensions, the last ones, in their order."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _columns(features, BLOCK: tl.constexpr):
    """Those of coordinates as a tile [BLOCK, 16], of which the last columns are 0."""
    none = tl.zeros_like(features[0])
    tile = _beside(
        _beside(features[0], features[4], features[8], features[12]),
        _beside(features[1], features[5], features[9], none),
        _beside(features[2], features[6], features[10], none),
        _beside(features[3], features[7], features[11], none),
    )
    return _bounded(tl.reshape(tile, (BLOCK, 16)), _BOUND)


@triton.jit
def _outputs(columns, BLOCK: tl.constexpr):
    """The first five columns of [BLOCK, 8], each of its own."""
    even, odd = tl.split(tl.reshape(columns, (BLOCK, 4, 2)))
    even, third = tl.split(tl.reshape(even, (BLOCK, 2, 2)))
    odd, fourth = tl.split(tl.reshape(odd, (BLOCK, 2, 2)))
    first, fifth = tl.split(even)
    second, _ = tl.split(odd)
    third, _ = tl.split(third)
    fourth, _ = tl.split(fourth)
    return first, second, third, fourth, fifth


@triton.jit
def _part(weight, direction):
    """How far a direction is followed."""
    return 2 * tanh(weight / 2) * direction


@triton.jit
def advance_mlp(
    table,
    owner,
    first_chunk,
    num_chunks,
    settings,
    control,
    partials,
    update_squares,
    packed,
    facts,
    scale,
    GRAD_DTYPE: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    DECAYS: tl.constexpr,
    JUDGED: tl.constexpr,
    DTYPE: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Advance the states of coordinates, kept in DTYPE; leave displacements and sums.

    The rule's weights are packed one after the other (`rules.py`): of the first layer [features,
    UNITS] and biases, of the second [UNITS, UNITS] and biases, of the outputs [5, UNITS] and
    biases; units that there are not have zeros.

    Sums are `update_squares` [programs]; and, if the step is judged, `partials` [programs,
    2 + UNITS]: products with gradients and last displacements, and the second layer's outputs.
    """
    mode = tl.load(control + MODE)
    sign, lr, decay = rates(settings)
    uu = tl.zeros((BLOCK,), tl.float64)
    sums = (uu, uu, uu)
    read = tl.zeros((BLOCK, UNITS), tl.float32)
    unit = tl.arange(0, UNITS)
    if mode == LEARNED:
        # Rows behind those of coordinates are multiplied by 0.
        first = split(tl.load(packed + tl.arange(0, 16)[:, None] * UNITS + unit[None, :]))
        packed_second = packed + (_FEATURES + 1) * UNITS
        second = split(tl.load(packed_second + unit[:, None] * UNITS + unit[None, :]))
        second_bias = tl.load(packed_second + UNITS * UNITS + unit)
        packed_last = packed_second + (UNITS + 1) * UNITS
        output = tl.arange(0, 8)
        weights = packed_last + output[None, :] * UNITS + unit[:, None]
        last = split(tl.load(weights, mask=(output < 5)[None, :], other=0.0))
        last_bias = tl.load(packed_last + 5 * UNITS + output, mask=output < 5, other=0.0)
        for chunk in range(
            first_chunk + tl.program_id(0), first_chunk + num_chunks, tl.num_programs(0)
        ):
            tensor = tl.load(owner + chunk)
            entry = table + tensor * COLUMNS
            known = facts + tensor * FACTS
            begin = (chunk - tl.load(entry + FIRST_CHUNK)) * CHUNK
            size = tl.load(entry + SIZE)
            level = _of_tensor(packed, known, UNITS)
            own_scale = scale * tl.load(known + _SCALE)
            for part in range(0, tl.minimum(CHUNK, size - begin), BLOCK):
                at = begin + part
                row = tl.arange(0, BLOCK)
                exists = row < size - at
                grad = tl.load(pointer(entry + GRAD, GRAD_DTYPE) + at + row, mask=exists, other=0.0)
                grad = grad.to(tl.float32) * sign
                kept = remembered(entry, at, row, exists, JUDGED)
                directions, features = _look(entry + RULE, known, grad, at, row, exists, DTYPE)
                hidden = tl.broadcast_to(level[None, :], (BLOCK, UNITS))
                hidden = _product(_columns(features, BLOCK), first, hidden)
                more = tl.broadcast_to(second_bias[None, :], (BLOCK, UNITS))
                hidden = _relu(_product(_relu(hidden), second, more))
                more = tl.broadcast_to(last_bias[None, :], (BLOCK, 8))
                found = _outputs(_product(hidden, last, more), BLOCK)
                mixed = (
                    _part(found[1], directions[0])
                    + _part(found[2], directions[1])
                    + _part(found[3] + 1, directions[2])
                    + _part(found[4], directions[3])
                )
                log_size = tanh(found[0] / _BOUND) * _BOUND
                update = -lr * (own_scale * tl.exp(log_size) * mixed)
                if JUDGED:
                    read += tl.where(exists[:, None], hidden, 0.0)
                sums = displace(
                    entry, at, row, exists, grad, update, decay, kept, sums,
                    PARAM_DTYPE, DECAYS, JUDGED,
                )  # fmt: skip
    own = partials + tl.program_id(0) * (2 + UNITS)
    leave_sums(update_squares, own, sums, JUDGED)
    if JUDGED:
        tl.store(own + 2 + unit, tl.sum(read.to(tl.float64), 0))
