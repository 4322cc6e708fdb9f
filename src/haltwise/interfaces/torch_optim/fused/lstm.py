"""The kernel that advances the tensors of a group by an LSTM."""

import triton
import triton.language as tl

from haltwise._kernels.fused.cell import (
    advance,
    gradient_features,
    load_states,
    load_weights,
    read_out,
    row_in_memory,
    unit_in_memory,
)
from haltwise.interfaces.torch_optim.fused.control import (
    CHUNK,
    COLUMNS,
    FIRST_CHUNK,
    GRAD,
    INVERSE,
    LEARNED,
    MEAN,
    MODE,
    RULE,
    SIZE,
)
from haltwise.interfaces.torch_optim.fused.tensors import (
    displace,
    leave_sums,
    pointer,
    rates,
    remembered,
)

__all__ = ["advance_lstm"]


@triton.jit
def advance_lstm(
    table,
    owner,
    first_chunk,
    num_chunks,
    settings,
    control,
    partials,
    update_squares,
    packed,
    readout,
    scale,
    anchor,
    GRAD_DTYPE: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    DECAYS: tl.constexpr,
    JUDGED: tl.constexpr,
    WORD: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    LAYERS: tl.constexpr,
    H: tl.constexpr,
    UA: tl.constexpr,
    UB: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Advance layers FIRST.. up to LAST; after the last of all, leave displacements and sums.

    States [L, rows, H] lie at distances from `anchor`, counted in 16 bytes, which are WORD entries.
    Each layer is advanced by a launch of its own, which reads and writes one dense piece of them.

    Sums are `update_squares` [programs]; and, if the step is judged, `partials` [programs,
    2 + UA + UB]: products with gradients and last displacements, and the top layer's outputs.
    """
    mode = tl.load(control + MODE)
    sign, lr, decay = rates(settings)
    mean = tl.load(control + MEAN).to(tl.float32)
    inverse = tl.load(control + INVERSE).to(tl.float32)
    uu = tl.zeros((BLOCK,), tl.float64)
    sums = (uu, uu, uu)
    read_a = tl.zeros((BLOCK, UA), tl.float32)
    read_b = tl.zeros((BLOCK, UB if UB > 0 else 1), tl.float32)
    rough: tl.constexpr = anchor.dtype.element_ty != tl.float32
    if mode == LEARNED:
        weights = load_weights(packed, FIRST, LAST, UA, UB, RESIDENT, rough)
        level = tl.zeros((BLOCK,), tl.float32) + mean
        x2 = tl.zeros((BLOCK,), tl.float32)
        x3 = x2
        if INPUTS == 4:
            x2, x3 = gradient_features(level)
        for chunk in range(
            first_chunk + tl.program_id(0), first_chunk + num_chunks, tl.num_programs(0)
        ):
            entry = table + tl.load(owner + chunk) * COLUMNS
            begin = (chunk - tl.load(entry + FIRST_CHUNK)) * CHUNK
            size = tl.load(entry + SIZE)
            # From a pointer known to be aligned the compiler loads 16 bytes at once.
            hidden = anchor + tl.load(entry + RULE) * WORD
            cell = anchor + tl.load(entry + RULE + 1) * WORD
            for part in range(0, tl.minimum(CHUNK, size - begin), BLOCK):
                at = begin + part
                row = row_in_memory(BLOCK)
                known = row < size - at
                grad = tl.load(pointer(entry + GRAD, GRAD_DTYPE) + at + row, mask=known, other=0.0)
                grad = grad.to(tl.float32) * sign
                x0, x1 = gradient_features(grad)
                if LAST == LAYERS:
                    kept = remembered(entry, at, row, known, JUDGED)
                states = load_states(
                    hidden + at * H, cell + at * H, hidden + at * H, size - at, size * H,
                    FIRST, LAST, H, H, UA, UB, BLOCK,
                )  # fmt: skip
                top_a, top_b = advance(
                    states, hidden + at * H, cell + at * H, weights, size - at, size * H,
                    x0, x1, x2, x3, FIRST, LAST, H, H, UA, UB, RESIDENT, rough, BLOCK,
                )  # fmt: skip
                if LAST == LAYERS:
                    update = lr * read_out(
                        top_a, top_b, readout, grad, mean, inverse, scale, OUTPUTS, UA, UB
                    )
                    if JUDGED:
                        read_a += tl.where(known[:, None], top_a, 0.0)
                        if UB > 0:
                            read_b += tl.where(known[:, None], top_b, 0.0)
                    sums = displace(
                        entry, at, row, known, grad, update, decay, kept, sums,
                        PARAM_DTYPE, DECAYS, JUDGED,
                    )  # fmt: skip
    if LAST == LAYERS:
        own = partials + tl.program_id(0) * (2 + UA + UB)
        leave_sums(update_squares, own, sums, JUDGED)
        if JUDGED:
            tl.store(own + 2 + unit_in_memory(0, UA), tl.sum(read_a.to(tl.float64), 0))
            if UB > 0:
                tl.store(own + 2 + UA + tl.arange(0, UB), tl.sum(read_b.to(tl.float64), 0))
