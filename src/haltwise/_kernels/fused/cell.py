"""Device functions: a stack of LSTM cells on a block of rows, and what an optimizer reads.

A program holds BLOCK rows. The H units of a layer lie in two tiles of UA and UB columns, powers of
two, so that 20 units are 16 + 4 and not 32: a padded column costs as much as a real one. UB is 0
where one tile is as good.

What is multiplied is split into two float16 of 11 bits each, and a product of float32 into three
of the matrix units: high times high, and each high with the other's low. What they leave out, and
what float16 rounds off below 2^-14, is some 3e-8 of a sum's largest term, as much as rounding sums
to float32 does; tf32, whose parts have 11 bits, too, takes twice the time, registers and memory.
Of a state that is kept in bfloat16 there is no low part. Weights come packed and split
(`packing.py`).

The matrix units say which thread holds which row and column of what they read and write. Rows of a
block and columns of its first tile are counted in an order of their own (`row_in_memory`,
`unit_in_memory`) for which a thread reads from memory just what it has to hold: 16 bytes at once,
which then need not go through shared memory. What they read is counted otherwise than what they
write (`_operand`), but by the same threads.
"""

import math

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from haltwise._kernels import operands
from haltwise._kernels.fused.packing import GATE_FACTORS

__all__ = [
    "advance",
    "gradient_features",
    "load_states",
    "load_weights",
    "narrowed",
    "read_out",
    "row_in_memory",
    "split",
    "unit_in_memory",
]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
TWICE = tl.constexpr(GATE_FACTORS[2])
SERIES_1 = tl.constexpr(1 / GATE_FACTORS[2])
SERIES_3 = tl.constexpr(-1 / 3 / GATE_FACTORS[2] ** 3)
SERIES_5 = tl.constexpr(2 / 15 / GATE_FACTORS[2] ** 5)
SERIES_7 = tl.constexpr(-17 / 315 / GATE_FACTORS[2] ** 7)
NEAR = tl.constexpr(0.02 * GATE_FACTORS[2] ** 2)
LOG_RANGE = tl.constexpr(operands.LOG_RANGE)
THRESHOLD = tl.constexpr(math.exp(-operands.LOG_RANGE))


@triton.jit
def split(x):
    """The nearest float16, and that of the rest; where x is not finite, neither is the second."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _operand(x, BLOCK: tl.constexpr, K: tl.constexpr):
    """Columns as the matrix units read them, of which `packing._as_read` orders the weights.

    Of 16 columns a thread has every fourth where they are written, and two pairs where they are
    read.
    """
    x = tl.permute(tl.reshape(x, (BLOCK, K // 16, 2, 2, 4)), (0, 1, 2, 4, 3))
    return tl.reshape(x, (BLOCK, K))


@triton.jit
def _load_part(packed, FIRST: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """Rows FIRST.. up to FIRST + K of what has N columns.

    One behind the other: a block of states may have as many rows and columns, and the compiler
    would share out the entries of both in the same way.
    """
    return tl.reshape(tl.load(packed + FIRST * N + tl.arange(0, K * N)), (K, N))


@triton.jit
def _load_product(packed, K: tl.constexpr, N: tl.constexpr, ROUGH: tl.constexpr):
    """Weights [K, N] as `_add_product` reads them; in memory the high halves, then the low ones."""
    high = _load_part(packed, 0, K, N)
    fine = high
    if ROUGH == 0:
        small = _load_part(packed, 0, 2 * K, N)  # both halves, for low and high ones
    else:
        small = _load_part(packed, K, K, N)
        if ROUGH < K:
            fine = _load_part(packed, ROUGH, K - ROUGH, N)
    return packed + 2 * K * N, (small, high, fine)


@triton.jit
def _load_bias(packed, LAYER: tl.constexpr, UA: tl.constexpr, UB: tl.constexpr, N: tl.constexpr):
    """The bias of N gates, where it is no column of their products."""
    if LAYER > 0 and (UB == 0 or 2 * UB == UA):
        column = tl.arange(0, N)
        high = tl.load(packed + column).to(tl.float32)
        return packed + 2 * N, high + tl.load(packed + N + column).to(tl.float32)
    else:
        return packed, tl.zeros((N,), tl.float32)


@triton.constexpr_function
def _num_rough(is_rough, layer, width):
    """Of the 2 `width` columns of a layer's first product, how many have no low half."""
    if not is_rough:
        return 0
    return width if layer == 0 else 2 * width


@triton.jit
def _load_gates(
    packed,
    LAYER: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
    N: tl.constexpr,
    ROUGH: tl.constexpr,
):
    """What N gates of a layer are made of: two products and a bias."""
    packed, first = _load_product(packed, 2 * UA, N, _num_rough(ROUGH, LAYER, UA))
    second = first
    if LAYER > 0 and UB > 0:
        packed, second = _load_product(packed, UA, N, _num_rough(ROUGH, 0, UA))
    packed, bias = _load_bias(packed, LAYER, UA, UB, N)
    return packed, (first, second, bias)


@triton.jit
def load_weights(
    packed,
    FIRST: tl.constexpr,
    LAYERS: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROUGH: tl.constexpr,
):
    """Those of layers FIRST.., for `advance`; loaded before a loop, they stay in shared memory.

    Where that has no room for them (not RESIDENT), only their address.
    """
    for layer in tl.static_range(FIRST):
        packed += 4 * (UA + UB) * 4 * UA
        if layer > 0 and UB > 0:
            packed += 4 * (UA + UB) * 2 * UA
        if layer > 0 and (UB == 0 or 2 * UB == UA):
            packed += 4 * (UA + UB) * 2
    if RESIDENT:
        weights = ()
        for layer in tl.static_range(FIRST, LAYERS):
            first = ()
            if UB > 0:
                packed, first = _load_gates(packed, layer, UA, UB, 4 * UB, ROUGH)
            packed, second = _load_gates(packed, layer, UA, UB, 4 * UA, ROUGH)
            weights = weights + (first, second)
        return weights
    else:
        return packed


@triton.jit
def _add_product(z, x, fine, weights, BLOCK: tl.constexpr, K: tl.constexpr, ROUGH: tl.constexpr):
    """Add x [BLOCK, K] times weights, what is small first; `fine` are columns from ROUGH on.

    What can be is added in one product, for which all wait.
    """
    if ROUGH == 0:
        high, low = split(_operand(x, BLOCK, K))
        z = tl.dot(_behind(low, high, BLOCK, K), weights[0], z)
    else:
        if ROUGH < K:
            _, low = split(_operand(fine, BLOCK, K - ROUGH))
            z = tl.dot(low, weights[2], z)
        high = _operand(x, BLOCK, K).to(tl.float16)
        z = tl.dot(high, weights[0], z)
    return tl.dot(high, weights[1], z)


@triton.jit
def _add_streamed(
    z,
    x,
    packed,
    FIRST: tl.constexpr,
    K: tl.constexpr,
    U: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUGH: tl.constexpr,
):
    """Add x times rows FIRST.. of weights [K, N], which are loaded one part after the other."""
    x_high, x_low = split(_operand(x, BLOCK, U))
    high = _load_part(packed, FIRST, U, N)
    if not ROUGH:
        z = tl.dot(x_low, high, z)
    z = tl.dot(x_high, _load_part(packed, K + FIRST, U, N), z)
    return tl.dot(x_high, high, z)


@triton.jit
def _sums(
    own,
    below,
    rest,
    weights,
    LAYER: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
    N: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROUGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The arguments of N gates, [BLOCK, N]; the address behind their weights if not RESIDENT."""
    z = tl.zeros((BLOCK, N), tl.float32)
    if RESIDENT:
        z += weights[2][None, :]
        x = _behind(own, below, BLOCK, UA)
        z = _add_product(z, x, below, weights[0], BLOCK, 2 * UA, _num_rough(ROUGH, LAYER, UA))
        if LAYER > 0 and UB > 0:
            z = _add_product(z, rest, rest, weights[1], BLOCK, UA, _num_rough(ROUGH, 0, UA))
        return z, weights
    else:
        z = _add_streamed(z, own, weights, 0, 2 * UA, UA, N, BLOCK, ROUGH)
        z = _add_streamed(z, below, weights, UA, 2 * UA, UA, N, BLOCK, ROUGH and LAYER > 0)
        weights += 4 * UA * N
        if LAYER > 0 and UB > 0:
            z = _add_streamed(z, rest, weights, 0, UA, UA, N, BLOCK, ROUGH)
            weights += 2 * UA * N
        weights, bias = _load_bias(weights, LAYER, UA, UB, N)
        return z + bias[None, :], weights


@triton.jit
def _gates(z, BLOCK: tl.constexpr, U: tl.constexpr):
    """Input, forget, candidate and output of columns [low bit of the gate, unit, high bit].

    So packed, those of a unit lie in the registers of one thread.
    """
    apart = tl.permute(tl.reshape(z, (BLOCK, 2, U, 2)), (0, 2, 1, 3))
    even, odd = tl.split(apart)
    enter, candidate = tl.split(even)
    forget, leave = tl.split(odd)
    return enter, forget, candidate, leave


@triton.jit
def _exp2(x):
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return libdevice.exp2(x)


@triton.jit
def _clamped_exp2(x):
    """At most 2^40: no sigmoid is told from 0 by its result, and products stay below 2^126."""
    return _exp2(tl.minimum(x, 40.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _divide(x, y):
    """Quotient for y below 2^126, and 0 for larger ones."""
    if INTERPRETED:
        return x / y
    else:
        return libdevice.fast_dividef(x, y)


@triton.jit
def _tanh(x):
    """Numerator and denominator of tanh(x / `TWICE`), whose x = log2 exp(2 x').

    A series where the quotient would lose the digits of small arguments.
    """
    power = _exp2(tl.minimum(x, 43.0, propagate_nan=tl.PropagateNan.ALL))
    square = x * x
    series = square * SERIES_7 + SERIES_5
    series = series * square + SERIES_3
    series = (series * square + SERIES_1) * x
    near = square < NEAR
    return tl.where(near, series, power - 1.0), tl.where(near, 1.0, power + 1.0)


@triton.jit
def _once(x):
    """x, computed once: the compiler would compute it anew in every layout in which it is read."""
    if INTERPRETED:
        return x
    else:
        return tl.inline_asm_elementwise("mov.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _cell(z, cell, BLOCK: tl.constexpr, U: tl.constexpr):
    """Hidden and cell state after the step, from the gates' sums [BLOCK, 4 U].

    Packed weights give what a power of 2 takes: -log2(e) x for a sigmoid 1 / (1 + exp(-x)), and
    2 log2(e) x for a tanh. Those that are multiplied or added share a division.
    """
    enter, forget, candidate, leave = _gates(z, BLOCK, U)
    candidate, under = _tanh(candidate)
    under += under * _clamped_exp2(enter)
    forgetting = 1.0 + _clamped_exp2(forget)
    cell = _once(_divide(_once(cell) * under + candidate * forgetting, under * forgetting))
    shown, under = _tanh(cell * TWICE)
    return _once(_divide(shown, under + under * _exp2(leave))), cell


@triton.jit
def _behind(a, b, BLOCK: tl.constexpr, U: tl.constexpr):
    """Columns of the one, then of the other, [BLOCK, 2 U]."""
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (BLOCK, 2 * U))


@triton.jit
def _first_is_one(BLOCK: tl.constexpr, U: tl.constexpr):
    """Zeros [BLOCK, U], but for the first column, which reads the bias."""
    return tl.where(tl.arange(0, U) == 0, 1.0, 0.0)[None, :] + tl.zeros((BLOCK, U), tl.float32)


@triton.jit
def _padded(x, BLOCK: tl.constexpr, U: tl.constexpr, WIDTH: tl.constexpr):
    """Columns with padding behind them, doubling until there are WIDTH, at most 16 U.

    The first that is added is 1, for the bias; all others are 0.
    """
    if U < WIDTH:
        x = _behind(x, _first_is_one(BLOCK, U), BLOCK, U)
    if 2 * U < WIDTH:
        x = _behind(x, tl.zeros((BLOCK, 2 * U), tl.float32), BLOCK, 2 * U)
    if 4 * U < WIDTH:
        x = _behind(x, tl.zeros((BLOCK, 4 * U), tl.float32), BLOCK, 4 * U)
    if 8 * U < WIDTH:
        x = _behind(x, tl.zeros((BLOCK, 8 * U), tl.float32), BLOCK, 8 * U)
    return x


@triton.jit
def row_in_memory(BLOCK: tl.constexpr):
    """Where each row of a block lies in memory.

    The matrix units give a warp 16 rows behind each other, 8 to a register; a warp that reads 16
    bytes a thread has 8 of the first 32, and 8 of the others.
    """
    row = tl.arange(0, BLOCK)
    if BLOCK == 64:
        row = (row & 7) | ((row & 8) << 2) | ((row & 48) >> 1)
    return row


@triton.jit
def unit_in_memory(FIRST: tl.constexpr, U: tl.constexpr):
    """Which unit each column of a tile is; see `packing._units`."""
    column = tl.arange(0, U)
    if FIRST == 0 and U == 16:
        column = (column % 4) * 4 + column // 4
    return FIRST + column


@triton.jit
def _from_memory(x, FIRST: tl.constexpr, BLOCK: tl.constexpr, U: tl.constexpr):
    """Rows and columns as they lie in memory, in the kernel's order."""
    if BLOCK == 64 and FIRST == 0 and U == 16:
        x = tl.permute(tl.reshape(x, (2, 2, 2, 8, 4, 4)), (1, 2, 0, 3, 5, 4))
    elif BLOCK == 64:
        x = tl.permute(tl.reshape(x, (2, 2, 2, 8, U)), (1, 2, 0, 3, 4))
    return tl.reshape(x, (BLOCK, U))


@triton.jit
def _to_memory(x, FIRST: tl.constexpr, BLOCK: tl.constexpr, U: tl.constexpr):
    if BLOCK == 64 and FIRST == 0 and U == 16:
        x = tl.permute(tl.reshape(x, (2, 2, 2, 8, 4, 4)), (2, 0, 1, 3, 5, 4))
    elif BLOCK == 64:
        x = tl.permute(tl.reshape(x, (2, 2, 2, 8, U)), (2, 0, 1, 3, 4))
    return tl.reshape(x, (BLOCK, U))


@triton.jit
def _column(FIRST: tl.constexpr, U: tl.constexpr):
    """Units FIRST.., such that a thread takes four of them at once where there are 16 or more."""
    column = tl.arange(0, U)
    if U == 4:
        return FIRST + _unaligned() + column
    return FIRST + (column // 4 * 4 + column % 4)


@triton.jit
def _unaligned():
    """A zero of which the compiler knows nothing, so that it takes words one by one."""
    if INTERPRETED:
        return 0
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, 0;", "=r,r", [tl.full((), 0, tl.int32)], tl.int32, True, 1
        )


@triton.jit
def _load(state, row, inside, FIRST: tl.constexpr, U: tl.constexpr, H: tl.constexpr):
    """Units FIRST.. of one layer, [BLOCK, U], as they lie in memory."""
    unit = _column(FIRST, U)
    if FIRST + U > H:
        inside = inside & (unit < H)[None, :]
    return tl.load(state + row + unit[None, :], mask=inside, other=0.0)


@triton.jit
def narrowed(value, DTYPE: tl.constexpr):
    """float32 rounded to the nearest; the interpreter would cut bfloat16 off."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = tl.where(value == value, (bits & -65536).to(tl.float32, bitcast=True), value)
    return value.to(DTYPE)


@triton.jit
def _store(
    state,
    value,
    row,
    inside,
    FIRST: tl.constexpr,
    U: tl.constexpr,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit = _column(FIRST, U)
    if FIRST + U > H:
        inside = inside & (unit < H)[None, :]
    value = _to_memory(narrowed(value, state.dtype.element_ty), FIRST, BLOCK, U)
    tl.store(state + row + unit[None, :], value, mask=inside)


@triton.jit
def _load_tiles(state, row, inside, H: tl.constexpr, UA: tl.constexpr, UB: tl.constexpr):
    """All units of one layer in two tiles, of which the second is the first where UB is 0."""
    first = _load(state, row, inside, 0, UA, H)
    second = first
    if UB > 0:
        second = _load(state, row, inside, UA, UB, H)
    return first, second


@triton.jit
def load_states(
    hidden,
    cell,
    below,
    num_rows,
    far,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    PITCH: tl.constexpr,
    H: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What `advance` is to read of states, of which `num_rows` rows are there.

    A row's H units lie PITCH entries behind the last row's, and `far` behind those of the layer
    below. `below` is the new hidden state, where the layer under the first has been advanced by
    another kernel.
    """
    rows = tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None]
    row = (rows * PITCH)[:, None]
    states = ()
    for layer in tl.static_range(FIRST, LAST):
        own = _load_tiles(hidden + layer * far, row, inside, H, UA, UB)
        states = states + (own, _load_tiles(cell + layer * far, row, inside, H, UA, UB))
    if FIRST > 0:
        under = below + (FIRST - 1) * far
        states = states + (_load_tiles(under, row, inside, H, UA, UB),)
    return states


@triton.jit
def _tiles(loaded, UA: tl.constexpr, UB: tl.constexpr, BLOCK: tl.constexpr):
    """Such tiles in float32 and in the kernel's order."""
    first = _from_memory(loaded[0].to(tl.float32), 0, BLOCK, UA)
    second = first
    if UB > 0:
        second = _from_memory(loaded[1].to(tl.float32), UA, BLOCK, UB)
    return first, second


@triton.jit
def advance(
    states,
    new_hidden,
    new_cell,
    weights,
    num_rows,
    far,
    x0,
    x1,
    x2,
    x3,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    PITCH: tl.constexpr,
    H: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROUGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of layers FIRST.. up to LAST, from what `load_states` has read.

    New states lie as it says there. The features `x0` to `x3` are of rows in the order of
    `row_in_memory`. ROUGH says that states have no more than 11 bits.

    Layers may be advanced one after the other in kernels of their own: each reads what that below
    has left in the new state, and needs few registers and little shared memory, so that more
    programs hide each other's latency.

    Returns:
        The top layer's output in two tiles, [BLOCK, UA] and [BLOCK, UB], the second of which is
        the first where UB is 0; rows and columns in the order of `row_in_memory` and
        `unit_in_memory`.
    """
    rows = tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None]
    row = (rows * PITCH)[:, None]
    features = _features(x0, x1, x2, x3)
    below_a = tl.zeros((BLOCK, UA), tl.float32)
    below_b = below_a
    if FIRST > 0:
        below_a, below_b = _tiles(states[2 * (LAST - FIRST)], UA, UB, BLOCK)
    for layer in tl.static_range(FIRST, LAST):
        hidden, cell = new_hidden + layer * far, new_cell + layer * far
        own_a, own_b = _tiles(states[2 * (layer - FIRST)], UA, UB, BLOCK)
        c_a, c_b = _tiles(states[2 * (layer - FIRST) + 1], UA, UB, BLOCK)
        rest = own_a
        second = below_a
        if layer == 0:
            second = _padded(features, BLOCK, 4, UA)
            if UB > 0:
                second = _behind(own_b, _padded(features, BLOCK, 4, UB), BLOCK, UB)
                second = _padded(second, BLOCK, 2 * UB, UA)
        elif UB > 0:
            rest = _padded(_behind(own_b, below_b, BLOCK, UB), BLOCK, 2 * UB, UA)
        if UB > 0:
            own = weights
            if RESIDENT:
                own = weights[2 * (layer - FIRST)]
            z, own = _sums(own_a, second, rest, own, layer, UA, UB, 4 * UB, RESIDENT, ROUGH, BLOCK)
            if not RESIDENT:
                weights = own
            below_b, c_b = _cell(z, c_b, BLOCK, UB)
            _store(hidden, below_b, row, inside, UA, UB, H, BLOCK)
            _store(cell, c_b, row, inside, UA, UB, H, BLOCK)
        own = weights
        if RESIDENT:
            own = weights[2 * (layer - FIRST) + 1]
        z_a, own = _sums(own_a, second, rest, own, layer, UA, UB, 4 * UA, RESIDENT, ROUGH, BLOCK)
        if not RESIDENT:
            weights = own
        below_a, c_a = _cell(z_a, c_a, BLOCK, UA)
        _store(hidden, below_a, row, inside, 0, UA, H, BLOCK)
        _store(cell, c_a, row, inside, 0, UA, H, BLOCK)
    return below_a, below_b


@triton.jit
def _features(x0, x1, x2, x3):
    """Columns [BLOCK, 4], each of which every thread has made for itself."""
    column = tl.arange(0, 4)[None, :]
    odd = (column % 2) == 1
    first = tl.where(odd, x1[:, None], x0[:, None])
    second = tl.where(odd, x3[:, None], x2[:, None])
    return tl.where(column >= 2, second, first)


@triton.jit
def gradient_features(grad):
    """Magnitude on a log scale, and sign (L2L, appendix A); NaN of what is not finite."""
    poison = grad * 0.0
    magnitude = tl.log(tl.maximum(tl.abs(grad), THRESHOLD)) * (1.0 / LOG_RANGE) + poison
    sign = tl.minimum(tl.maximum(grad * (1.0 / THRESHOLD), -1.0), 1.0) + poison
    return magnitude, sign


@triton.jit
def _folded(top, weight, U: tl.constexpr):
    """Products [BLOCK, U] with a read-out's weight, summed to [BLOCK, 4] within each thread."""
    product = top * tl.load(weight + tl.arange(0, U))[None, :]
    return tl.sum(tl.reshape(product, (top.shape[0], U // 4, 4)), 1)


@triton.jit
def _output(top_a, top_b, readout, index: tl.constexpr, UA: tl.constexpr, UB: tl.constexpr):
    """One output: weights in tiles, the bias behind them."""
    at = readout + index * (UA + UB + 1)
    value = _folded(top_a, at, UA)
    if UB > 0:
        value += _folded(top_b, at + UA, UB)
    return tl.sum(value, 1) + tl.load(at + UA + UB)


@triton.jit
def read_out(
    top_a,
    top_b,
    readout,
    grad,
    mean,
    inverse,
    scale,
    OUTPUTS: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
):
    """The update (docs/theory.md, Eq. (rule))."""
    update = _output(top_a, top_b, readout, 0, UA, UB)
    if OUTPUTS == 4:
        level = mean * inverse
        own = grad * inverse - level
        update += _output(top_a, top_b, readout, 2, UA, UB) * own
        update += _output(top_a, top_b, readout, 3, UA, UB) * level
    update *= scale
    if OUTPUTS > 1:
        root = tl.exp(0.5 * _output(top_a, top_b, readout, 1, UA, UB))
        update *= root
        update *= root  # whose square may overflow, as it should
    return update
