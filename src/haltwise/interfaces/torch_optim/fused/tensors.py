"""Kernels that move the tensors of a parameter group, all of them in one launch.

A row of the table describes a tensor (columns in `control.py`); its entries are cut into chunks,
which programs take in turns, always the same ones, so that sums come out the same. What is to be
done at this step lies in the group's control record: the host knows nothing of it.
"""

import triton
import triton.language as tl

from haltwise._kernels.fused.cell import narrowed
from haltwise.interfaces.torch_optim import guard
from haltwise.interfaces.torch_optim.fused.control import (
    ADAM,
    ADAM_MEAN,
    ADAM_SQUARE,
    ADAM_STEP,
    ADAM_STEPS,
    CHUNK,
    COLUMNS,
    COPY,
    DECAY,
    FIRST_CHUNK,
    GO_BACK,
    GRAD,
    LAST_GRAD,
    LAST_UPDATE,
    LEARNED,
    LR,
    MODE,
    MOVED,
    PARAM,
    RATE,
    REMEMBER,
    SIGN,
    SIZE,
    TOUCHED,
    power,
)

__all__ = [
    "apply_tensors",
    "displace",
    "leave_sums",
    "pointer",
    "pool_tensors",
    "rates",
    "remembered",
]

HUGE = tl.constexpr(guard.HUGE)
FIRST_BETA = tl.constexpr(guard.BETAS[0])
SECOND_BETA = tl.constexpr(guard.BETAS[1])


@triton.jit
def pointer(entry, DTYPE: tl.constexpr):
    return tl.load(entry).to(tl.pointer_type(DTYPE))


@triton.jit
def pool_tensors(
    table,
    owner,
    first_chunk,
    num_chunks,
    settings,
    control,
    partials,
    adam_sums,
    GRAD_DTYPE: tl.constexpr,
    GUARDED: tl.constexpr,
    JUDGED: tl.constexpr,
):
    """Sums over gradients, [programs, 8], and of Adam's new squares, for each chunk.

    The first two are the gradient's and its square's, the others, if the step is judged, products
    with what is remembered, in the order in which `PRODUCTS` ends.
    """
    sign = tl.load(settings + SIGN).to(tl.float32)
    by_adam = tl.load(control + ADAM_STEPS) >= 0
    total = tl.zeros((CHUNK,), tl.float64)
    squares = total
    yy = total
    pp = total
    ll = total
    yp = total
    gp = total
    gl = total
    for chunk in range(
        first_chunk + tl.program_id(0), first_chunk + num_chunks, tl.num_programs(0)
    ):
        entry = table + tl.load(owner + chunk) * COLUMNS
        at = (chunk - tl.load(entry + FIRST_CHUNK)) * CHUNK + tl.arange(0, CHUNK)
        known = at < tl.load(entry + SIZE)
        grad = tl.load(pointer(entry + GRAD, GRAD_DTYPE) + at, mask=known, other=0.0)
        grad = grad.to(tl.float32) * sign
        wide = grad.to(tl.float64)
        total += wide
        squares += wide * wide
        if JUDGED:
            last_grad = tl.load(pointer(entry + LAST_GRAD, tl.float32) + at, mask=known, other=0.0)
            step = tl.load(pointer(entry + LAST_UPDATE, tl.float32) + at, mask=known, other=0.0)
            last_grad = last_grad.to(tl.float64)
            step = step.to(tl.float64)
            change = wide - last_grad
            yy += change * change
            pp += step * step
            ll += last_grad * last_grad
            yp += change * step
            gp += wide * step
            gl += wide * last_grad
        if GUARDED:
            grad = tl.minimum(tl.maximum(grad, -HUGE), HUGE)
            wide = (grad * grad).to(tl.float64) * (1 - SECOND_BETA)
            if by_adam:
                old = tl.load(pointer(entry + ADAM_SQUARE, tl.float32) + at, mask=known, other=0.0)
                wide += old.to(tl.float64) * SECOND_BETA
            tl.store(adam_sums + chunk, tl.sum(wide, 0))
    at = partials + 8 * tl.program_id(0)
    tl.store(at, tl.sum(total, 0))
    tl.store(at + 1, tl.sum(squares, 0))
    if JUDGED:
        tl.store(at + 2, tl.sum(yy, 0))
        tl.store(at + 3, tl.sum(pp, 0))
        tl.store(at + 4, tl.sum(ll, 0))
        tl.store(at + 5, tl.sum(yp, 0))
        tl.store(at + 6, tl.sum(gp, 0))
        tl.store(at + 7, tl.sum(gl, 0))


@triton.jit
def rates(settings):
    """The sign of gradients, the learning rate and the weight decay of a step."""
    sign = tl.load(settings + SIGN).to(tl.float32)
    lr = tl.load(settings + LR).to(tl.float32)
    decay = (tl.load(settings + LR) * tl.load(settings + DECAY)).to(tl.float32)
    return sign, lr, decay


@triton.jit
def remembered(entry, at, row, known, JUDGED: tl.constexpr):
    """What is kept of rows for `displace`, asked for early: where it lies, and some of it.

    Returns:
        Addresses of the last gradients, of the last displacements and of whether rows were
        touched; whether they were; and the last displacements, if the step is judged.
    """
    last_grad = pointer(entry + LAST_GRAD, tl.float32) + at + row
    last_update = pointer(entry + LAST_UPDATE, tl.float32) + at + row
    touched = pointer(entry + TOUCHED, tl.int8) + at + row
    seen = tl.load(touched, mask=known, other=0)
    before = seen
    if JUDGED:
        before = tl.load(last_update, mask=known, other=0.0)
    return last_grad, last_update, touched, seen, before


@triton.jit
def displace(
    entry,
    at,
    row,
    known,
    grad,
    update,
    decay,
    kept,
    sums,
    PARAM_DTYPE: tl.constexpr,
    DECAYS: tl.constexpr,
    JUDGED: tl.constexpr,
):
    """Leave the rows' displacements, which are their updates and the decay; add to the sums.

    Those are, for each row of a block, the displacement's square and, if the step is judged, its
    products with the gradient and with the last displacement.
    """
    last_grad, last_update, touched, seen, before = kept
    uu, gu, up = sums
    if DECAYS:
        value = tl.load(pointer(entry + PARAM, PARAM_DTYPE) + at + row, mask=known, other=0.0)
        update -= decay * value.to(tl.float32)
    update = tl.where(known, update, 0.0)
    u = update.to(tl.float64)
    uu += u * u
    if JUDGED:
        gu += u * grad.to(tl.float64)
        up += u * before.to(tl.float64)
    tl.store(last_grad, grad, mask=known)
    tl.store(last_update, update, mask=known)
    seen = tl.where(grad != 0, 1, seen.to(tl.int32)).to(tl.int8)
    tl.store(touched, seen, mask=known)
    return uu, gu, up


@triton.jit
def leave_sums(update_squares, partials, sums, JUDGED: tl.constexpr):
    """Leave a program's sums; `partials` is its row."""
    uu, gu, up = sums
    tl.store(update_squares + tl.program_id(0), tl.sum(uu, 0))
    if JUDGED:
        tl.store(partials, tl.sum(gu, 0))
        tl.store(partials + 1, tl.sum(up, 0))


@triton.jit
def apply_tensors(
    table,
    owner,
    first_chunk,
    num_chunks,
    settings,
    control,
    adam_roots,
    GRAD_DTYPE: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    GUARDED: tl.constexpr,
):
    """Move the parameters as the control record says, and keep or take up the copy of them."""
    mode = tl.load(control + MODE)
    sign = tl.load(settings + SIGN).to(tl.float32)
    moved = tl.load(control + MOVED) != 0
    remember = tl.load(control + REMEMBER) != 0
    go_back = tl.load(control + GO_BACK) != 0
    plain = (tl.load(settings + LR) * tl.load(settings + DECAY)).to(tl.float32)
    rate = tl.load(control + RATE)
    taken = tl.load(control + ADAM_STEP) + 1
    step_size = (rate / (1 - power(FIRST_BETA, taken))).to(tl.float32)
    unbias = (1 / (1 - power(SECOND_BETA, taken))).to(tl.float32)
    adam_decay = (rate * tl.load(settings + DECAY)).to(tl.float32)
    for chunk in range(
        first_chunk + tl.program_id(0), first_chunk + num_chunks, tl.num_programs(0)
    ):
        tensor = tl.load(owner + chunk)
        entry = table + tensor * COLUMNS
        at = (chunk - tl.load(entry + FIRST_CHUNK)) * CHUNK + tl.arange(0, CHUNK)
        known = at < tl.load(entry + SIZE)
        has_grad = tl.load(entry + GRAD) != 0
        param = pointer(entry + PARAM, PARAM_DTYPE) + at
        value = tl.load(param, mask=known, other=0.0)
        if GUARDED:
            copy = pointer(entry + COPY, PARAM_DTYPE) + at
            if remember:
                tl.store(copy, value, mask=known)
            if go_back:
                tl.store(param, tl.load(copy, mask=known, other=0.0), mask=known)
        if has_grad & (mode == LEARNED):
            last_update = pointer(entry + LAST_UPDATE, tl.float32) + at
            if moved:
                update = tl.load(last_update, mask=known, other=0.0)
                seen = tl.load(pointer(entry + TOUCHED, tl.int8) + at, mask=known, other=0)
                wide = value.to(tl.float32)
                wide += tl.where(seen != 0, update, -plain * wide)
                tl.store(param, narrowed(wide, PARAM_DTYPE), mask=known)
            else:
                tl.store(last_update, tl.zeros((CHUNK,), tl.float32), mask=known)
        if GUARDED:
            if has_grad & (mode == ADAM):
                grad = tl.load(pointer(entry + GRAD, GRAD_DTYPE) + at, mask=known, other=0.0)
                grad = grad.to(tl.float32) * sign
                grad = tl.minimum(tl.maximum(grad, -HUGE), HUGE)
                first = pointer(entry + ADAM_MEAN, tl.float32) + at
                second = pointer(entry + ADAM_SQUARE, tl.float32) + at
                average = tl.load(first, mask=known, other=0.0)
                average += (grad - average) * (1 - FIRST_BETA)
                square = tl.load(second, mask=known, other=0.0)
                square += (grad * grad - square) * (1 - SECOND_BETA)
                tl.store(first, average, mask=known)
                tl.store(second, square, mask=known)
                root = tl.sqrt(square * unbias) + tl.load(adam_roots + tensor).to(tl.float32)
                wide = value.to(tl.float32)
                wide -= step_size * (average / root) + adam_decay * wide
                tl.store(param, narrowed(wide, PARAM_DTYPE), mask=known)
