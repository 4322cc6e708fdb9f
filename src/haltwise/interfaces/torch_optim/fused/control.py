"""The control record of a parameter group, and the kernels that keep it: sums, the guard, counters.

All of it stays on the device, so that a step asks nothing of the host. The guard is that of
`haltwise.interfaces.torch_optim.guard`, whose comments say why; a test holds the two together.

Any thread may read a number that another writes, so reading comes first, then a barrier.
"""

import triton
import triton.language as tl

from haltwise.interfaces.torch_optim import guard

__all__ = ["CONTROL", "GUARD", "SETTINGS", "begin_step", "end_step", "power", "total"]

_SMOOTHING = tl.constexpr(guard.SMOOTHING)
_FEW = tl.constexpr(guard.FEW)
_BOLD = tl.constexpr(guard.BOLD)
_LONG = tl.constexpr(guard.LONG)
_RISE = tl.constexpr(guard.RISE)
_LITTLE = tl.constexpr(guard.LITTLE)
_NOISE = tl.constexpr(guard.NOISE)
_MEMORY = tl.constexpr(guard.MEMORY)
_FAR = tl.constexpr(guard.FAR)
_ROUNDING = tl.constexpr(guard.ROUNDING)
_WAIT = tl.constexpr(guard.WAIT)
_ANNEAL = tl.constexpr(guard.ANNEAL)
_SLOWLY = tl.constexpr(guard.SLOWLY)
_CUT = tl.constexpr(guard.CUT)
_LEAST = tl.constexpr(guard.LEAST)
_FAILURES = tl.constexpr(guard.FAILURES)
_WINDOW = tl.constexpr(guard.WINDOW)
_EPS = tl.constexpr(guard.EPS)
_TINY = tl.constexpr(guard.TINY)
_USUAL_RATE = tl.constexpr(guard.USUAL_RATE)
_FRESH_RATE = tl.constexpr(guard.FRESH_RATE)
_SECOND_BETA = tl.constexpr(guard.BETAS[1])

# What is done at this step.
NOTHING = tl.constexpr(0)
LEARNED = tl.constexpr(1)
ADAM = tl.constexpr(2)
RETURN = tl.constexpr(3)  # to the copy, under Adam

# Settings of a group, float64.
NUM = tl.constexpr(0)  # coordinates with a gradient
HORIZON = tl.constexpr(1)
PRICE = tl.constexpr(2)
SIGN = tl.constexpr(3)  # -1 if the loss is to be increased
DECAY = tl.constexpr(4)
LR = tl.constexpr(5)
SETTINGS = 8
"""Numbers of a group's settings."""

# Table of a group's tensors, int64.
GRAD = tl.constexpr(0)  # address, 0 if there is none at this step
PARAM = tl.constexpr(1)
SIZE = tl.constexpr(2)
FIRST_CHUNK = tl.constexpr(3)
LAST_GRAD = tl.constexpr(4)
LAST_UPDATE = tl.constexpr(5)
TOUCHED = tl.constexpr(6)
COPY = tl.constexpr(7)
ADAM_MEAN = tl.constexpr(8)
ADAM_SQUARE = tl.constexpr(9)
RULE = tl.constexpr(10)  # from here on where the rule's states lie (`rules.py`)
COLUMNS = tl.constexpr(20)
CHUNK = tl.constexpr(512)
"""Entries of a tensor that a program takes at once."""

# The control record, float64.
STEP = tl.constexpr(0)  # updates applied
SKIPPED = tl.constexpr(1)
NUM_JUDGED = tl.constexpr(2)  # of them with the loss
MODE = tl.constexpr(3)
REMEMBER = tl.constexpr(4)
GO_BACK = tl.constexpr(5)
MEAN = tl.constexpr(6)  # of the gradient
INVERSE = tl.constexpr(7)  # 1 / root mean square
RATE = tl.constexpr(8)  # Adam's at this step
ADAM_STEP = tl.constexpr(9)  # Adam's steps before this one
MOVED = tl.constexpr(10)  # whether the learned update was applied at the last step
LOGGED = tl.constexpr(11)  # rows of the log
WHY = tl.constexpr(12)  # why Adam has taken over, 0 where it has not
WHY_STEP = tl.constexpr(13)
WHY_WAITED = tl.constexpr(14)
STOPS = tl.constexpr(15)  # whether Adam's steps have not earned their price
LOSS = tl.constexpr(16)
LOG_RMS = tl.constexpr(17)  # of the gradient, as in `haltwise._core.tensors.log_rms`
# What the guard remembers, in the order of its record.
BEGUN = tl.constexpr(20)
ADAM_STEPS = tl.constexpr(21)
FAILURES = tl.constexpr(22)
LOSSES = tl.constexpr(23)
LOWEST_AT = tl.constexpr(24)
SMOOTH = tl.constexpr(25)
NOISE = tl.constexpr(26)
FIRST = tl.constexpr(27)
LOWEST = tl.constexpr(28)
LOWEST_OF = tl.constexpr(29)
HIGH = tl.constexpr(30)
UPDATE_SIZE = tl.constexpr(31)
WEIGHT = tl.constexpr(32)
SIZE_THERE = tl.constexpr(33)
FULL_RATE = tl.constexpr(34)
ANNEAL = tl.constexpr(35)
WINDOW = tl.constexpr(36)
GAINED = tl.constexpr(37)
ASTRAY = tl.constexpr(38)
CONTROL = 40
"""Numbers of a control record."""
GUARD = 20
"""Where the guard's begin."""

RISES = tl.constexpr(1)
WAITS = tl.constexpr(2)
ENDED = tl.constexpr(3)
DIVERGES = tl.constexpr(4)

PRODUCTS = ((1, 1), (0, 1), (1, 3), (0, 0), (2, 2), (3, 3), (4, 4), (2, 3), (0, 3), (0, 4))
"""Which of `haltwise.processes.signals.sum_products` a row of the log holds, in this order."""

# How much is loaded at once: each further round waits for the memory once more.
_ROWS = tl.constexpr(256)
_NUMBERS = tl.constexpr(8192)


@triton.jit
def total(sums, num, COLUMNS: tl.constexpr):
    """The sum of a column of [num, COLUMNS], in an order that does not change."""
    found = tl.zeros((_ROWS,), tl.float64)
    for begin in range(0, num, _ROWS):
        row = begin + tl.arange(0, _ROWS)
        found += tl.load(sums + row * COLUMNS, mask=row < num, other=0.0)
    return tl.sum(found, 0)


@triton.jit
def _is_finite(value):
    return tl.abs(value) < float("inf")


@triton.jit
def power(BASE: tl.constexpr, exponent):
    return tl.exp(exponent * tl.log(tl.full((), BASE, tl.float64)))


@triton.jit
def _take_over(record, horizon, size_there, nothing_gained, is_done, why, step, waited):
    """`Guard._take_over`, and why; all has been read."""
    tl.store(record + ANNEAL, tl.where(is_done, horizon * _ANNEAL, horizon * _SLOWLY))
    usual = tl.full((), _USUAL_RATE, tl.float64)
    most = tl.full((), _FRESH_RATE, tl.float64)
    rate = tl.where(size_there != 0, size_there, usual)
    tl.store(record + ADAM_STEPS, 0.0)
    tl.store(record + FULL_RATE, tl.where(nothing_gained, tl.minimum(rate, most), rate))
    tl.store(record + WHY, why)
    tl.store(record + WHY_STEP, step)
    tl.store(record + WHY_WAITED, waited)


@triton.jit
def _cut(record, size_there, full_rate):
    """`Guard._cut`; all has been read."""
    usual = tl.full((), _USUAL_RATE, tl.float64)
    most = tl.full((), _FRESH_RATE, tl.float64)
    least = tl.minimum(tl.where(size_there != 0, size_there, usual), most) * _LEAST
    tl.store(record + FULL_RATE, tl.maximum(full_rate * _CUT, tl.minimum(least, full_rate)))


@triton.jit
def _renew(record, size_there, horizon, taken):
    """`Guard._renew`; all has been read."""
    usual = tl.full((), _USUAL_RATE, tl.float64)
    most = tl.full((), _FRESH_RATE, tl.float64)
    tl.store(record + FULL_RATE, tl.minimum(tl.maximum(size_there, usual), most))
    tl.store(record + ANNEAL, horizon * _SLOWLY + taken)


@triton.jit
def _begin_again(record, nothing_gained, lowest, losses, step):
    """`Guard._begin_again`; all has been read, and what was seen is written."""
    tl.store(record + SMOOTH, lowest * (1 - power(_SMOOTHING, losses)))
    tl.store(record + ASTRAY, tl.where(nothing_gained, 0.0, 1.0))
    if nothing_gained:
        tl.debug_barrier()
        tl.store(record + LOSSES, 0.0)
        tl.store(record + SMOOTH, 0.0)
        tl.store(record + NOISE, 0.0)
        tl.store(record + FIRST, 0.0)
        tl.store(record + LOWEST, float("inf"))
        tl.store(record + LOWEST_OF, 0.0)
    tl.store(record + LOWEST_AT, step)
    tl.store(record + BEGUN, step)
    tl.store(record + HIGH, 0.0)


@triton.jit
def _fail(record, settings):
    """`Guard.fail`; whether to go back."""
    step = tl.load(record + STEP)
    horizon = tl.load(settings + HORIZON)
    begun_at = tl.load(record + BEGUN)
    failures = tl.load(record + FAILURES) + 1
    losses = tl.load(record + LOSSES)
    lowest = tl.load(record + LOWEST)
    size_there = tl.load(record + SIZE_THERE)
    by_adam = tl.load(record + ADAM_STEPS) >= 0
    full_rate = tl.load(record + FULL_RATE)
    nothing_gained = (losses > 0) & (tl.load(record + GAINED) == 0)
    gives_up = (failures >= _FAILURES) & (step > 0)
    goes_back = gives_up & (losses > 0)
    tl.debug_barrier()
    tl.store(record + FAILURES, tl.where(gives_up, 0.0, failures))
    if goes_back:
        _begin_again(record, nothing_gained, lowest, losses, step)
    if gives_up:
        tl.debug_barrier()
        tl.store(record + BEGUN, step)
        if by_adam:
            if step > begun_at:  # else no step has led here
                _cut(record, size_there, full_rate)
        else:
            is_done = step < 0
            _take_over(record, horizon, size_there, nothing_gained, is_done, DIVERGES, step, 0.0)
    return goes_back


@triton.jit
def _too_much(first, lowest, lowest_of, noise):
    """`Guard._too_much`."""
    fall = tl.maximum(first - lowest, 0.0)
    doubt = noise * _NOISE / tl.sqrt(1 - power(_SMOOTHING, tl.maximum(lowest_of, 1.0)))
    return tl.maximum(tl.maximum(fall * _RISE, doubt), tl.abs(first) * _ROUNDING)


@triton.jit
def _observe(record, settings, loss, HAS_LOSS: tl.constexpr):
    """`Guard.observe`; whether to remember, and to go back."""
    step = tl.load(record + STEP)
    horizon = tl.load(settings + HORIZON)
    taken = tl.load(record + ADAM_STEPS)
    by_adam = taken >= 0
    astray = tl.load(record + ASTRAY)
    size_there = tl.load(record + SIZE_THERE)
    full_rate = tl.load(record + FULL_RATE)
    losses = tl.load(record + LOSSES)
    smooth = tl.load(record + SMOOTH)
    noise = tl.load(record + NOISE)
    first = tl.load(record + FIRST)
    high = tl.load(record + HIGH)
    lowest = tl.load(record + LOWEST)
    lowest_of = tl.load(record + LOWEST_OF)
    lowest_at = tl.load(record + LOWEST_AT)
    gained = tl.load(record + GAINED)
    remembers = step < 0
    rises = remembers
    waits = remembers
    waited = 0.0 * step
    if HAS_LOSS:
        began = losses > 0
        first = tl.where(began, first, loss)
        high = tl.where(loss - first > tl.abs(first) * _BOLD, high + 1, 0.0)
        # `Guard._take_in`.
        level = smooth / tl.where(began, 1 - power(_SMOOTHING, losses), 1.0)
        was_known = losses > _FEW
        most = _too_much(first, lowest, lowest_of, noise)
        astray = tl.where(began & (loss - lowest <= most), 0.0, astray)
        most *= _FAR
        deviation = loss - level
        deviation = tl.where(was_known, tl.minimum(deviation, most), deviation)
        above = tl.maximum(deviation, 0.0)
        above = tl.where(was_known & (noise != 0), tl.minimum(above, noise * _FAR), above)
        memory = tl.full((), _MEMORY, tl.float64)
        share = tl.maximum(1 / tl.maximum(losses, 1.0), memory)
        noise = tl.where(began, noise + (2 * above - noise) * share, noise)
        loss = tl.where(began, level + deviation, loss)
        losses += 1
        smooth += (loss - smooth) * (1 - _SMOOTHING)
        level = smooth / (1 - power(_SMOOTHING, losses))
        is_known = losses > _FEW
        is_lowest = level <= lowest
        lowest = tl.where(is_lowest, level, lowest)
        lowest_at = tl.where(is_lowest, step, lowest_at)
        lowest_of = tl.where(is_lowest, losses, lowest_of)
        little = tl.abs(first) * _LITTLE
        little = tl.where(is_known, tl.minimum(little, noise * _NOISE), little)
        gains = first - level > tl.maximum(little, tl.abs(first) * _ROUNDING)
        gained = tl.where(is_lowest & gains, 1.0, gained)
        remembers = is_lowest & (gained != 0)
        rises = is_known & (level - lowest > _too_much(first, lowest, lowest_of, noise))
        rises = (rises | ((high >= _LONG) & (losses <= _FEW + _LONG))) & (is_lowest == 0)
        waited = step - lowest_at
        waits = (is_lowest == 0) & (by_adam == 0) & (waited > horizon * _WAIT)
    is_other = rises & (astray != 0)
    gained = tl.where(is_other, 0.0, gained)
    nothing_gained = (losses > 0) & (gained == 0)
    ends = (by_adam == 0) & (step >= horizon)
    goes_back = rises | waits | (ends & nothing_gained)
    tl.debug_barrier()
    tl.store(record + LOSSES, losses)
    tl.store(record + SMOOTH, smooth)
    tl.store(record + NOISE, noise)
    tl.store(record + FIRST, first)
    tl.store(record + LOWEST, lowest)
    tl.store(record + LOWEST_OF, lowest_of)
    tl.store(record + LOWEST_AT, lowest_at)
    tl.store(record + HIGH, high)
    tl.store(record + GAINED, gained)
    tl.store(record + ASTRAY, astray)
    if goes_back:
        tl.debug_barrier()
        _begin_again(record, nothing_gained, lowest, losses, step)
    if by_adam:
        if is_other:
            _renew(record, size_there, horizon, taken)
        elif goes_back:
            _cut(record, size_there, full_rate)
    elif goes_back | ends:
        why = tl.where(ends, ENDED, tl.where(rises, RISES, WAITS))
        is_done = ends & (nothing_gained == 0) & (first - lowest >= tl.abs(first) * (1 - _LITTLE))
        _take_over(record, horizon, size_there, nothing_gained, is_done, why, step, waited)
    return remembers, goes_back


@triton.jit
def begin_step(
    table,
    num_tensors,
    settings,
    control,
    pooled,
    first_program,
    num_programs,
    num_all_programs,
    adam_sums,
    adam_roots,
    loss,
    HAS_LOSS: tl.constexpr,
    GUARDED: tl.constexpr,
):
    """Decide what is done at this step; `pooled` [programs of all groups, 8]."""
    finite = _is_finite(total(pooled + 1, num_all_programs, 8))
    gradients = total(pooled + 8 * first_program, num_programs, 8)
    squares = total(pooled + 8 * first_program + 1, num_programs, 8)
    num = tl.load(settings + NUM)
    value = 0.0 * num
    if HAS_LOSS:
        value = tl.load(loss).to(tl.float64) * tl.load(settings + SIGN)
        finite = finite & _is_finite(value)
    skipped = tl.load(control + SKIPPED)
    remembers = num < 0
    goes_back = remembers
    mode = NOTHING + 0 * tl.load(control + MODE)
    if finite:
        mode += LEARNED
        if GUARDED:
            remembers, goes_back = _observe(control, settings, value, HAS_LOSS)
            tl.debug_barrier()
            taken = tl.load(control + ADAM_STEPS)
            full_rate = tl.load(control + FULL_RATE)
            if taken >= 0:
                mode += ADAM - LEARNED
                if goes_back:
                    mode += RETURN - ADAM
                rate = full_rate / (1 + taken / tl.load(control + ANNEAL))
                tl.store(control + RATE, rate * tl.load(settings + LR))
                tl.store(control + ADAM_STEP, taken)
                unbias = 1 / (1 - power(_SECOND_BETA, taken + 1))
                for tensor in range(num_tensors):
                    entry = table + tensor * COLUMNS
                    size = tl.load(entry + SIZE)
                    first = tl.load(entry + FIRST_CHUNK)
                    square = total(adam_sums + first, tl.cdiv(size, CHUNK), 1) / size
                    tl.store(adam_roots + tensor, tl.sqrt(square * unbias) * _EPS + _TINY)
    else:
        tl.store(control + SKIPPED, skipped + 1)
        if GUARDED:
            if (_is_finite(squares) & _is_finite(value)) == 0:
                goes_back = _fail(control, settings)
    # The floor, exp(-80), is what every rule reads of zeros.
    tl.store(control + MEAN, gradients / num)
    tl.store(control + INVERSE, 1 / tl.maximum(tl.sqrt(squares / num), 1.8048513878454153e-35))
    tl.store(control + LOG_RMS, 0.5 * tl.log(tl.maximum(squares / num, 1e-90)))
    tl.store(control + MODE, mode)
    tl.store(control + MOVED, 0.0)
    tl.store(control + REMEMBER, tl.where(remembers, 1.0, 0.0))
    tl.store(control + GO_BACK, tl.where(goes_back, 1.0, 0.0))
    tl.store(control + LOSS, value)


@triton.jit
def end_step(
    settings,
    control,
    pooled,
    partials,
    update_squares,
    first_program,
    num_programs,
    num_all_programs,
    log,
    num_log_rows,
    HAS_LOSS: tl.constexpr,
    GUARDED: tl.constexpr,
    JUDGED: tl.constexpr,
    UNITS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Note what was done; what a halter reads of it goes into a row of the log.

    Rows are [16 + UNITS]: step, loss, products in the order of `PRODUCTS`, and from 16 on the means
    of the read-out.
    """
    mode = tl.load(control + MODE)
    step = tl.load(control + STEP)
    judged = tl.load(control + NUM_JUDGED)
    skipped = tl.load(control + SKIPPED)
    logged = tl.load(control + LOGGED)
    loss = tl.load(control + LOSS)
    num = tl.load(settings + NUM)
    lr = tl.load(settings + LR)
    if mode == LEARNED:
        finite = _is_finite(total(update_squares, num_all_programs, 1))
        squares = total(update_squares + first_program, num_programs, 1)
        if finite:
            if GUARDED:
                losses = tl.load(control + LOSSES)
                size = tl.load(control + UPDATE_SIZE)
                weight = tl.load(control + WEIGHT)
                size_there = tl.load(control + SIZE_THERE)
                is_lowest = tl.load(control + LOWEST_AT) == step
                tl.debug_barrier()
                tl.store(control + FAILURES, 0.0)
                if lr != 0:
                    size += (squares / num / (lr * lr) - size) * (1 - _SMOOTHING)
                    weight += (1 - weight) * (1 - _SMOOTHING)
                    tl.store(control + UPDATE_SIZE, size)
                    tl.store(control + WEIGHT, weight)
                    if is_lowest | (losses == 0) | (size_there == 0):
                        tl.store(control + SIZE_THERE, tl.sqrt(size / weight))
            tl.debug_barrier()
            tl.store(control + STEP, step + 1)
            tl.store(control + MOVED, 1.0)
            if HAS_LOSS:
                tl.store(control + NUM_JUDGED, judged + 1)
                # Judged later only if every step came with the loss.
                if JUDGED & (judged == step) & (logged < num_log_rows):
                    row = log + logged.to(tl.int64) * (16 + UNITS)
                    tl.store(row, step)
                    tl.store(row + 1, loss)
                    tl.store(row + 2, squares)
                    column = tl.arange(0, 8)
                    sums = tl.zeros((_ROWS, 8), tl.float64)
                    for begin in range(0, num_programs, _ROWS):
                        program = begin + tl.arange(0, _ROWS)[:, None]
                        at = pooled + 8 * (first_program + program) + column[None, :]
                        sums += tl.load(at, mask=program < num_programs, other=0.0)
                    tl.store(row + 4 + column, tl.sum(sums, 0), mask=column > 0)
                    column = tl.arange(0, WIDTH)
                    sums = tl.zeros((_NUMBERS // WIDTH, WIDTH), tl.float64)
                    for begin in range(0, num_programs, _NUMBERS // WIDTH):
                        program = begin + tl.arange(0, _NUMBERS // WIDTH)[:, None]
                        at = partials + (2 + UNITS) * program + column[None, :]
                        known = (program < num_programs) & (column < 2 + UNITS)[None, :]
                        sums += tl.load(at, mask=known, other=0.0)
                    found = tl.sum(sums, 0)
                    tl.store(row + 3 + column, found, mask=column < 2)
                    inside = (column >= 2) & (column < 2 + UNITS)
                    tl.store(row + 14 + column, found / num, mask=inside)
                    tl.store(control + LOGGED, logged + 1)
        else:
            goes_back = num < 0
            if GUARDED:
                if _is_finite(squares) == 0:
                    goes_back = _fail(control, settings)
            tl.debug_barrier()
            tl.store(control + SKIPPED, skipped + 1)
            tl.store(control + GO_BACK, tl.where(goes_back, 1.0, 0.0))
    elif mode != NOTHING:
        taken = tl.load(control + ADAM_STEPS)
        window = tl.load(control + WINDOW)
        smooth = tl.load(control + SMOOTH)
        losses = tl.load(control + LOSSES)
        tl.debug_barrier()
        if mode == ADAM:
            tl.store(control + FAILURES, 0.0)
            tl.store(control + ADAM_STEPS, taken + 1)
            if HAS_LOSS:
                if taken.to(tl.int64) % _WINDOW == 0:
                    level = smooth / (1 - power(_SMOOTHING, losses))
                    tl.store(control + WINDOW, level)
                    if window - level < tl.load(settings + PRICE) * _WINDOW:
                        tl.store(control + STOPS, 1.0)
        tl.store(control + STEP, step + 1)
        if HAS_LOSS:
            tl.store(control + NUM_JUDGED, judged + 1)
