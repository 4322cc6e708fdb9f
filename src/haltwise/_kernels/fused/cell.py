"""Device functions: a stack of LSTM cells on a block of rows, and what an optimizer reads.

A program holds BLOCK rows. The H units of a layer lie in two tiles of UA and UB columns, powers of
two, so that 20 units are 16 + 4 and not 32: a padded column costs as much as a real one. UB is 0
where one tile is as good. A product's weights come packed (`packing.py`), split into two parts of
11 bits each, so that three products of the matrix units (tf32) are as exact as one of float32.

The matrix units say which thread holds which row and column of what they read and write. Rows of a
block and columns of its first tile are counted in an order of their own (`row_in_memory`,
`unit_in_memory`) for which a thread reads from memory just what it has to hold: 16 bytes at once,
which then need not go through shared memory.
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
    "load_weights",
    "narrowed",
    "read_out",
    "row_in_memory",
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
def _split(x):
    """Split into 11 bits, which are what a matrix unit reads, and the rest."""
    bits = x.to(tl.int32, bitcast=True)
    high = ((bits + 0x1000) & -8192).to(tl.float32, bitcast=True)
    return high, x - high  # what is no number shows in the second


@triton.jit
def _load_product(packed, K: tl.constexpr, N: tl.constexpr):
    """Weights [K, N]: both their parts, [2 K, N], and the first of them."""
    columns = tl.arange(0, N)[None, :]
    both = tl.load(packed + tl.arange(0, 2 * K)[:, None] * N + columns)
    high = tl.load(packed + tl.arange(0, K)[:, None] * N + columns)
    return packed + 2 * K * N, (both, high)


@triton.jit
def _load_bias(packed, LAYER: tl.constexpr, UA: tl.constexpr, UB: tl.constexpr, N: tl.constexpr):
    """The bias of N gates, where it is no column of their products."""
    if LAYER > 0 and (UB == 0 or 2 * UB == UA):
        return packed + N, tl.load(packed + tl.arange(0, N))
    else:
        return packed, tl.zeros((N,), tl.float32)


@triton.jit
def _load_gates(packed, LAYER: tl.constexpr, UA: tl.constexpr, UB: tl.constexpr, N: tl.constexpr):
    """What N gates of a layer are made of: two products and a bias."""
    packed, first = _load_product(packed, 2 * UA, N)
    second = first
    if LAYER > 0 and UB > 0:
        packed, second = _load_product(packed, UA, N)
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
):
    """Those of layers FIRST.., for `advance`; loaded before a loop, they stay in shared memory.

    Where that has no room for them (not RESIDENT), only their address.
    """
    for layer in tl.static_range(FIRST):
        packed += 4 * (UA + UB) * 4 * UA
        if layer > 0 and UB > 0:
            packed += 4 * (UA + UB) * 2 * UA
        if layer > 0 and (UB == 0 or 2 * UB == UA):
            packed += 4 * (UA + UB)
    if RESIDENT:
        weights = ()
        for layer in tl.static_range(FIRST, LAYERS):
            first = ()
            if UB > 0:
                packed, first = _load_gates(packed, layer, UA, UB, 4 * UB)
            packed, second = _load_gates(packed, layer, UA, UB, 4 * UA)
            weights = weights + (first, second)
        return weights
    else:
        return packed


@triton.jit
def _add_product(z, x, weights, BLOCK: tl.constexpr, K: tl.constexpr):
    """Add x [BLOCK, K] times weights: what is small first, in one product, for which all wait."""
    high, low = _split(x)
    z = tl.dot(_behind(low, high, BLOCK, K), weights[0], z, input_precision="tf32")
    return tl.dot(high, weights[1], z, input_precision="tf32")


@triton.jit
def _add_streamed(
    z, x, packed, FIRST: tl.constexpr, K: tl.constexpr, U: tl.constexpr, N: tl.constexpr
):
    """Add x times rows FIRST.. of weights [K, N], which are loaded one part after the other."""
    at = packed + (FIRST + tl.arange(0, U))[:, None] * N + tl.arange(0, N)[None, :]
    x_high, x_low = _split(x)
    high = tl.load(at)
    z = tl.dot(x_low, high, z, input_precision="tf32")
    z = tl.dot(x_high, high, z, input_precision="tf32")
    return tl.dot(x_high, tl.load(at + K * N), z, input_precision="tf32")


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
    BLOCK: tl.constexpr,
):
    """The arguments of N gates, [BLOCK, N]; the address behind their weights if not RESIDENT."""
    z = tl.zeros((BLOCK, N), tl.float32)
    if RESIDENT:
        z += weights[2][None, :]
        z = _add_product(z, _behind(own, below, BLOCK, UA), weights[0], BLOCK, 2 * UA)
        if LAYER > 0 and UB > 0:
            z = _add_product(z, rest, weights[1], BLOCK, UA)
        return z, weights
    else:
        z = _add_streamed(z, own, weights, 0, 2 * UA, UA, N)
        z = _add_streamed(z, below, weights, UA, 2 * UA, UA, N)
        weights += 4 * UA * N
        if LAYER > 0 and UB > 0:
            z = _add_streamed(z, rest, weights, 0, UA, UA, N)
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
        return tl.inline_asm_elementwise("mov.f32 $0, $1;", "=f,f", [x], tl.float32, False, 1)


@triton.jit
def _cell(z, cell, BLOCK: tl.constexpr, U: tl.constexpr):
    """Hidden and cell state after the step, from the gates' sums [BLOCK, 4 U].

    Packed weights give what a power of 2 takes: -log2(e) x for a sigmoid 1 / (1 + exp(-x)), and
    2 log2(e) x for a tanh. Those that are multiplied share a division.
    """
    enter, forget, candidate, leave = _gates(z, BLOCK, U)
    candidate, under = _tanh(candidate)
    entering = _divide(candidate, under + under * _exp2(enter))
    cell = _once(_divide(_once(cell), 1.0 + _exp2(forget)) + entering)
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
def _load(
    state, row, inside, FIRST: tl.constexpr, U: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr
):
    """Units FIRST.. of one layer, float32 [BLOCK, U]."""
    unit = _column(FIRST, U)
    if FIRST + U > H:
        inside = inside & (unit < H)[None, :]
    value = tl.load(state + row + unit[None, :], mask=inside, other=0.0)
    return _from_memory(value.to(tl.float32), FIRST, BLOCK, U)


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
def advance(
    hidden,
    cell,
    new_hidden,
    new_cell,
    weights,
    num_rows,
    x0,
    x1,
    x2,
    x3,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    LAYERS: tl.constexpr,
    H: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of layers FIRST.. up to LAST; states [BLOCK, L, H], of which `num_rows` are there.

    The features `x0` to `x3` are of rows in the order of `row_in_memory`.

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
    # All is asked of the memory before anything is computed: while it comes, there is time.
    states = ()
    for layer in tl.static_range(FIRST, LAST):
        row = (rows * (LAYERS * H) + layer * H)[:, None]
        own_a = _load(hidden, row, inside, 0, UA, H, BLOCK)
        c_a = _load(cell, row, inside, 0, UA, H, BLOCK)
        own_b = own_a
        c_b = c_a
        if UB > 0:
            own_b = _load(hidden, row, inside, UA, UB, H, BLOCK)
            c_b = _load(cell, row, inside, UA, UB, H, BLOCK)
        states = states + ((own_a, own_b, c_a, c_b),)
    features = _features(x0, x1, x2, x3)
    below_a = tl.zeros((BLOCK, UA), tl.float32)
    below_b = below_a
    if FIRST > 0:
        row = (rows * (LAYERS * H) + (FIRST - 1) * H)[:, None]
        below_a = _load(new_hidden, row, inside, 0, UA, H, BLOCK)
        if UB > 0:
            below_b = _load(new_hidden, row, inside, UA, UB, H, BLOCK)
    for layer in tl.static_range(FIRST, LAST):
        row = (rows * (LAYERS * H) + layer * H)[:, None]
        own_a = states[layer - FIRST][0]
        own_b = states[layer - FIRST][1]
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
            z, own = _sums(own_a, second, rest, own, layer, UA, UB, 4 * UB, RESIDENT, BLOCK)
            if not RESIDENT:
                weights = own
            below_b, c_b = _cell(z, states[layer - FIRST][3], BLOCK, UB)
            _store(new_hidden, below_b, row, inside, UA, UB, H, BLOCK)
            _store(new_cell, c_b, row, inside, UA, UB, H, BLOCK)
        own = weights
        if RESIDENT:
            own = weights[2 * (layer - FIRST) + 1]
        z_a, own = _sums(own_a, second, rest, own, layer, UA, UB, 4 * UA, RESIDENT, BLOCK)
        if not RESIDENT:
            weights = own
        below_a, c_a = _cell(z_a, states[layer - FIRST][2], BLOCK, UA)
        _store(new_hidden, below_a, row, inside, 0, UA, H, BLOCK)
        _store(new_cell, c_a, row, inside, 0, UA, H, BLOCK)
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
