"""Kernels of one step: of many problems' rows, and of the tensors of a parameter group."""

import triton
import triton.language as tl

from haltwise._kernels.fused.cell import (
    advance,
    gradient_features,
    load_states,
    load_weights,
    read_out,
    row_in_memory,
)

__all__ = ["step_rows"]


@triton.jit
def step_rows(
    grads,
    pooled,
    hidden,
    cell,
    new_hidden,
    new_cell,
    updates,
    packed,
    readout,
    num_rows,
    group,
    scale,
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
    """Advance layers FIRST.. up to LAST of N rows, and after the last of all read updates [N] out.

    `pooled` is (mean, 1 / root mean square) of the gradients [N] of every `group` rows.
    """
    weights = load_weights(packed, FIRST, LAST, UA, UB, RESIDENT, False)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK), tl.num_programs(0)):
        begin = block * tl.full((), BLOCK, tl.int64)
        row = row_in_memory(BLOCK)
        known = row < num_rows - begin
        problem = 2 * ((begin + row) // group)
        grad = tl.load(grads + begin + row, mask=known, other=0.0)
        mean = tl.load(pooled + problem, mask=known, other=0.0)
        inverse = tl.load(pooled + problem + 1, mask=known, other=0.0)
        x0, x1 = gradient_features(grad)
        x2 = tl.zeros_like(x0)
        x3 = x2
        if INPUTS == 4:
            x2, x3 = gradient_features(mean)
        at = begin * (LAYERS * H)
        states = load_states(
            hidden + at, cell + at, new_hidden + at, num_rows - begin, H,
            FIRST, LAST, LAYERS * H, H, UA, UB, BLOCK,
        )  # fmt: skip
        top_a, top_b = advance(
            states, new_hidden + at, new_cell + at, weights, num_rows - begin, H,
            x0, x1, x2, x3, FIRST, LAST, LAYERS * H, H, UA, UB, RESIDENT, False, BLOCK,
        )  # fmt: skip
        if LAST == LAYERS:
            update = read_out(top_a, top_b, readout, grad, mean, inverse, scale, OUTPUTS, UA, UB)
            tl.store(updates + begin + row, update, mask=known)
