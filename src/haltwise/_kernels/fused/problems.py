"""Kernels of which a program reads some problems whole.

What a gradient is like, the signals of a step, L-BFGS's direction, and a record of evaluations.
"""

import triton
import triton.language as tl

__all__ = [
    "direction_kernel",
    "norm_kernel",
    "note_kernel",
    "pool_kernel",
    "signals_kernel",
    "tiling",
]


def tiling(num_rows: int, dim: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and how many rows and coordinates a program reads."""
    width = int(triton.next_power_of_2(dim))
    at_once = max(1, 256 // width)
    num_warps = max(1, min(16, at_once * width // 64))
    return (triton.cdiv(num_rows, at_once),), {
        "ROWS": at_once,
        "COORDINATES": width,
        "num_warps": num_warps,
    }


@triton.jit
def _rows(num_rows, dim, ROWS: tl.constexpr, COORDINATES: tl.constexpr):
    """The rows of a program, where their coordinates are, and which there are."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    coordinate = tl.arange(0, COORDINATES)
    known = (row < num_rows)[:, None] & (coordinate < dim)[None, :]
    return row, row[:, None] * dim + coordinate[None, :], known


@triton.jit
def _at_most(value, limit):
    """`clamp_max`, which leaves NaN alone, as does `_at_least`."""
    return tl.where(value > limit, limit, value)


@triton.jit
def _at_least(value, limit):
    return tl.where(value < limit, limit, value)


@triton.jit
def _held(value, huge):
    """Finite, NaN being the largest."""
    return tl.where(value == value, _at_most(_at_least(value, -huge), huge), huge)


@triton.jit
def _cosine(product, one, other):
    cosine = _at_most(_at_least(product / one / other, -1.0), 1.0)
    return tl.where(cosine == cosine, cosine, 0.0)


@triton.jit
def _finite(square):
    """At most the largest number, or NaN."""
    return _at_most(square, 1.7976931348623157e308)


@triton.jit
def _log_rms(square_sum, dim):
    """With the floor of `haltwise._core.tensors.log_rms`, 1.5 log(1e-30)."""
    return 0.5 * tl.log(_at_least(square_sum / dim, 1e-90))


@triton.jit(do_not_specialize=["num_rows", "dim"])
def pool_kernel(grads, pooled, num_rows, dim, ROWS: tl.constexpr, COORDINATES: tl.constexpr):
    """Mean and inverse root mean square of gradients [N, D]."""
    row, at, known = _rows(num_rows, dim, ROWS, COORDINATES)
    grad = tl.load(grads + at, mask=known, other=0.0)
    largest = tl.maximum(tl.max(tl.abs(grad), 1), 1e-30)  # its square would not be a number
    scaled = tl.div_rn(grad, tl.broadcast_to(largest[:, None], (ROWS, COORDINATES)))
    mean_square = tl.sum(scaled * scaled, 1) / dim
    # Zeros stay zeros by these floors.
    rms = largest * tl.sqrt(_at_least(mean_square, 1e-30))
    inverse = tl.div_rn(1.0, _at_least(rms, 1.8048513878454153e-35))
    is_row = row < num_rows
    tl.store(pooled + 2 * row, largest * (tl.sum(scaled, 1) / dim), mask=is_row)
    tl.store(pooled + 2 * row + 1, inverse, mask=is_row)


@triton.jit(do_not_specialize=["num_rows", "dim"])
def norm_kernel(grads, norms, num_rows, dim, ROWS: tl.constexpr, COORDINATES: tl.constexpr):
    """The log rms of gradients [N, D], NaN where an entry is not finite."""
    row, at, known = _rows(num_rows, dim, ROWS, COORDINATES)
    grad = tl.load(grads + at, mask=known, other=0.0).to(tl.float64)
    square = tl.sum(grad * grad, 1)  # of float32, finite in float64
    norm = tl.where(square < float("inf"), _log_rms(square, dim), float("nan"))
    tl.store(norms + row, norm.to(norms.dtype.element_ty), mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "dim", "num_steps"])
def signals_kernel(
    steps,
    losses,
    grads,
    updates,
    last_grads,
    last_updates,
    signals,
    num_rows,
    dim,
    num_steps,
    ROWS: tl.constexpr,
    COORDINATES: tl.constexpr,
):
    """Signals [N, 13] of rows, as `haltwise.processes.signals.combine_products` makes them.

    Row n is at step `steps[n % num_steps]`.
    """
    row, at, _ = _rows(num_rows, dim, ROWS, COORDINATES)
    is_row = row < num_rows
    gg = tl.zeros([ROWS], tl.float64)
    uu, yy, ss, pp, ys, gs, gu, gp, us = gg, gg, gg, gg, gg, gg, gg, gg, gg
    for begin in range(0, dim, COORDINATES):
        known = is_row[:, None] & (begin + tl.arange(0, COORDINATES) < dim)[None, :]
        g = tl.load(grads + begin + at, mask=known, other=0.0).to(tl.float64)
        u = tl.load(updates + begin + at, mask=known, other=0.0).to(tl.float64)
        p = tl.load(last_grads + begin + at, mask=known, other=0.0).to(tl.float64)
        s = tl.load(last_updates + begin + at, mask=known, other=0.0).to(tl.float64)
        y = g - p
        gg, uu, yy = gg + tl.sum(g * g, 1), uu + tl.sum(u * u, 1), yy + tl.sum(y * y, 1)
        ss, pp, ys = ss + tl.sum(s * s, 1), pp + tl.sum(p * p, 1), ys + tl.sum(y * s, 1)
        gs, gu = gs + tl.sum(g * s, 1), gu + tl.sum(g * u, 1)
        gp, us = gp + tl.sum(g * p, 1), us + tl.sum(u * s, 1)
    step = tl.load(steps + row % num_steps, mask=is_row, other=0).to(tl.float64)
    loss = tl.load(losses + row, mask=is_row, other=0.0).to(tl.float64)

    gg, uu, yy, ss, pp = _finite(gg), _finite(uu), _finite(yy), _finite(ss), _finite(pp)
    # Roots first: a product of two squares might vanish.
    g_size, u_size = _at_least(tl.sqrt(gg), 1e-30), _at_least(tl.sqrt(uu), 1e-30)
    s_size, p_size = _at_least(tl.sqrt(ss), 1e-30), _at_least(tl.sqrt(pp), 1e-30)
    g_square, u_square, s_square = _held(gg, 1e30), _held(uu, 1e30), _held(ss, 1e30)
    y_square, secant = _held(yy, 1e30), _held(ys, 1e30)
    curvature = _at_most(_at_least(secant / _at_least(s_square, 1e-30), 1e-8), 1e30)
    inverse = _at_most(_at_least(secant / _at_least(y_square, 1e-30), 0.0), 1e8)
    seen = tl.where(step > 0, 1.0, 0.0).to(tl.float64)  # whether there is a step to look back at

    kind: tl.constexpr = signals.dtype.element_ty
    out = signals + row * 13
    tl.store(out, step.to(kind), mask=is_row)
    tl.store(out + 1, loss.to(kind), mask=is_row)
    tl.store(out + 2, _log_rms(gg, dim).to(kind), mask=is_row)
    tl.store(out + 3, _log_rms(uu, dim).to(kind), mask=is_row)
    tl.store(out + 4, (-_held(gu, 1e30)).to(kind), mask=is_row)
    tl.store(out + 5, (seen * 0.5 * curvature * u_square).to(kind), mask=is_row)
    tl.store(out + 6, (seen * 0.5 * inverse * g_square).to(kind), mask=is_row)
    tl.store(out + 7, (seen * 0.5 * g_square / curvature).to(kind), mask=is_row)
    tl.store(out + 8, (-_held(gs, 1e30)).to(kind), mask=is_row)
    tl.store(out + 9, (seen * tl.log(curvature)).to(kind), mask=is_row)
    tl.store(out + 10, (-_cosine(gu, g_size, u_size)).to(kind), mask=is_row)
    tl.store(out + 11, _cosine(gp, g_size, p_size).to(kind), mask=is_row)
    tl.store(out + 12, _cosine(us, u_size, s_size).to(kind), mask=is_row)


@triton.jit(do_not_specialize=["num_rows", "dim"])
def direction_kernel(
    grads,
    scales,
    inverses,
    steps,
    changes,
    directions,
    num_rows,
    dim,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COORDINATES: tl.constexpr,
):
    """Directions [N, D] of L-BFGS by the two loops over pairs [N, P, D], the newest first.

    `COLUMNS` is the power of two that holds `PAIRS`.
    """
    row, at, known = _rows(num_rows, dim, ROWS, COORDINATES)
    is_row = row < num_rows
    first = at + (row * (PAIRS - 1) * dim)[:, None]  # of the pairs; the next is dim further
    column = tl.arange(0, COLUMNS)[None, :]
    weights = tl.zeros([ROWS, COLUMNS], tl.float32)
    vector = tl.load(grads + at, mask=known, other=0.0)
    for k in tl.static_range(PAIRS):
        step = tl.load(steps + first + k * dim, mask=known, other=0.0)
        change = tl.load(changes + first + k * dim, mask=known, other=0.0)
        inverse = tl.load(inverses + row * PAIRS + k, mask=is_row, other=0.0)
        weight = inverse * tl.sum(step * vector, 1)
        vector -= weight[:, None] * change
        weights = tl.where(column == k, weight[:, None], weights)
    vector *= tl.load(scales + row, mask=is_row, other=0.0)[:, None]
    for k in tl.static_range(PAIRS - 1, -1, -1):
        step = tl.load(steps + first + k * dim, mask=known, other=0.0)
        change = tl.load(changes + first + k * dim, mask=known, other=0.0)
        inverse = tl.load(inverses + row * PAIRS + k, mask=is_row, other=0.0)
        weight = tl.sum(tl.where(column == k, weights, 0.0), 1)
        weight -= inverse * tl.sum(change * vector, 1)
        vector += weight[:, None] * step
    tl.store(directions + at, -vector, mask=known)


@triton.jit(do_not_specialize=["num_rows", "dim", "none"])
def note_kernel(
    items,
    iterates,
    losses,
    grads,
    counts,
    best_losses,
    best_params,
    best_grads,
    best_at,
    points,
    point_grads,
    last,
    num_rows,
    dim,
    none,
    BEST: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    COORDINATES: tl.constexpr,
):
    """Note evaluations [N, D] of problems, of which `none` is nobody's, as a `Ledger` does.

    `PLACES` for the latest of each are written in turn; 0 if they are not kept.
    """
    row, at, known = _rows(num_rows, dim, ROWS, COORDINATES)
    is_row = row < num_rows
    item = tl.load(items + row, mask=is_row, other=none)
    is_row &= item < none
    known &= is_row[:, None]
    coordinate = tl.arange(0, COORDINATES)[None, :]
    count = tl.load(counts + item, mask=is_row, other=0)
    iterate = tl.load(iterates + at, mask=known, other=0.0)
    grad = tl.load(grads + at, mask=known, other=0.0)
    loss = tl.load(losses + row, mask=is_row, other=0.0)
    better = is_row
    if BEST:
        lowest = tl.load(best_losses + item, mask=is_row, other=0.0)
        strange = tl.sum(tl.where(tl.abs(grad) < float("inf"), 0, 1), 1)  # NaN, too
        better &= (loss < lowest) & (strange == 0)
    # All threads that share a row load for themselves what one of them writes anew below.
    tl.debug_barrier()
    tl.store(counts + item, count + 1, mask=is_row)
    if PLACES > 0:
        place = (item * PLACES + count % PLACES)[:, None] * dim + coordinate
        tl.store(points + place, iterate, mask=known)
        tl.store(point_grads + place, grad, mask=known)
        tl.store(last + item, loss, mask=is_row)
    if BEST:
        place = item[:, None] * dim + coordinate
        tl.store(best_losses + item, loss, mask=better)
        tl.store(best_at + item, count, mask=better)
        tl.store(best_params + place, iterate, mask=known & better[:, None])
        tl.store(best_grads + place, grad, mask=known & better[:, None])
