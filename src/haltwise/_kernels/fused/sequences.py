"""T steps of a stacked LSTM by Triton's kernels: `native.forward` and `native.backward` on a GPU.

N rows, I inputs, L layers of H units, T steps; B problems of D coordinates make N = B D rows.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from haltwise._kernels.fused import backward as kernels
from haltwise._kernels.fused import launching
from haltwise._kernels.fused.layers import FusedLayers
from haltwise._kernels.operands import replay_operands, require_dims, state_operands

__all__ = ["backward", "forward"]

_ROWS = 16  # of a program
_TILE, _PARTS = 32, 64  # row-steps of a product of weight gradients, and parts that are summed
_INPUT_TILE = 64  # row-steps of a product of inputs
_SHARE = 16  # the part of a GPU's memory that a replay may fill
_MANY = 264  # programs that fill a GPU twice


def forward(
    layers: FusedLayers, inputs: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` of plain tensors in the weights' dtype and device; others are refused."""
    steps, rows, _ = require_dims("the inputs", inputs, "TNI")
    table = [
        ("the inputs", inputs, (steps, rows, layers.num_inputs)),
        *state_operands(hidden, cell, (rows, layers.num_layers, layers.size)),
    ]
    given, *state = (layers.operand(*row) for row in table)
    params = layers.block()
    outputs = given.new_empty(steps, rows, layers.size)
    new = torch.empty_like(state[0]), torch.empty_like(state[1])
    if rows:
        plan = _Plan.of(layers, triton.cdiv(rows, _ROWS))
        with launching(layers.device):
            sums = _input_sums(layers, given, params)
            kernels.forward_kernel[(triton.cdiv(rows, _ROWS),)](
                *(sums, *state, params, outputs, *new, steps, rows),
                **_sizes(layers),
                LAYERS=layers.num_layers,
                ROWS=_ROWS,
                KEEP=plan.keep,
                num_warps=plan.num_warps,
                num_stages=plan.num_stages,
            )
    return outputs, *new


def backward(
    layers: FusedLayers,
    given: Tensor,
    hidden: Tensor,
    cell: Tensor,
    *,
    pooled: Tensor | None = None,
    d_outputs: Tensor | None = None,
    d_updates: Tensor | None = None,
    d_sums: Tensor | None = None,
    d_hidden: Tensor | None = None,
    d_cell: Tensor | None = None,
    wants_state: bool = True,
) -> tuple[list[Tensor], list[Tensor]]:
    """Backpropagate through T steps, which are recomputed; see `native.backward`.

    Weight gradients are summed in a fixed order, so they are the same to the bit every time.
    """
    if layers.num_outputs and d_updates is None:
        d_updates = torch.zeros_like(given)
    optional = pooled, d_outputs, d_updates, d_sums, d_hidden, d_cell
    (steps, rows, num_problems), table = replay_operands(layers, given, (hidden, cell), *optional)
    operands = [
        None if tensor is None else layers.operand(name, tensor, shape)
        for name, tensor, shape in table
    ]
    params = layers.block()
    sums = torch.zeros_like(params, dtype=torch.float64)
    d_first = [hidden.new_empty(hidden.shape) for _ in range(2 if wants_state else 0)]
    width = max(1, _scratch(layers.device) // (layers.num_layers * layers.size * (6 * steps + 2)))
    for begin in range(0, rows, width):
        some = slice(begin, min(begin + width, rows))
        own: list[Tensor | None] = [*(value[some] for value in d_first)] or [None, None]
        with launching(layers.device):
            sums += _backward_rows(layers, params, operands, own, some, num_problems)
    return d_first, layers.split(sums.to(params.dtype))


def _backward_rows(
    layers: FusedLayers,
    params: Tensor,
    operands: Sequence[Tensor | None],
    d_first: Sequence[Tensor | None],
    rows: slice,
    num_problems: int,
) -> Tensor:
    """The derivative of the parameters' block that is due to some of the rows, float64."""
    given, hidden, cell, pooled, d_outputs, d_updates, d_sums, d_hidden, d_cell = operands
    assert given is not None
    assert hidden is not None
    assert cell is not None
    reads_out, size, num_layers = layers.num_outputs > 0, layers.size, layers.num_layers
    inputs = given[:, rows].contiguous()
    steps, count = inputs.shape[:2]
    num_programs = triton.cdiv(count, _ROWS)
    gates = given.new_empty(num_layers, steps, count, 4, size)
    cells, hiddens = (given.new_empty(num_layers, steps + 1, count, size) for _ in range(2))
    read = given.new_empty(steps, count, layers.num_inputs) if reads_out else inputs
    num_read_out = layers.num_outputs * (size + 1)
    d_readouts = given.new_empty(num_programs, num_read_out)
    plan = _Plan.of(layers, num_programs)
    kernels.backward_kernel[(num_programs,)](
        *(inputs if reads_out else _input_sums(layers, inputs, params), pooled),
        *(hidden[rows], cell[rows], params),
        *(_part(d_outputs, 1, rows), _part(d_updates, 1, rows), d_sums),
        *(_part(d_hidden, 0, rows), _part(d_cell, 0, rows)),
        *(read if reads_out else None, gates, cells, hiddens, *d_first, d_readouts),
        *(
            steps,
            count,
            rows.start,
            hidden.shape[0] // num_problems,
            num_problems,
            float(layers.scale),
        ),
        **_sizes(layers),
        LAYERS=layers.num_layers,
        OUTPUTS=layers.num_outputs,
        ROWS=_ROWS,
        KEEP=plan.keep,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    length = triton.cdiv(triton.cdiv(steps * count, _PARTS), _TILE) * _TILE
    num_parts = triton.cdiv(steps * count, length)
    num_learned = params.numel() - num_read_out
    partials = given.new_empty(num_parts, num_learned)
    kernels.weight_gradient_kernel[(4, num_layers, num_parts)](
        *(read, gates, hiddens, partials, steps, count, length, num_learned),
        **_sizes(layers),
        PADDED=_padded(layers.num_inputs),
        TILE=_TILE,
        num_warps=_padded(size) // 16,
    )
    parts = (partials, d_readouts) if reads_out else (partials,)
    return torch.cat([part.sum(0, dtype=torch.float64) for part in parts])


def _part(tensor: Tensor | None, dim: int, rows: slice) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.narrow(dim, rows.start, rows.stop - rows.start).contiguous()


def _input_sums(layers: FusedLayers, inputs: Tensor, params: Tensor) -> Tensor:
    """The first layer's sums over its inputs, biases included, [T, N, 4H]."""
    steps, rows, _ = inputs.shape
    sums = inputs.new_empty(steps, rows, 4 * layers.size)
    kernels.input_kernel[(triton.cdiv(steps * rows, _INPUT_TILE), 4)](
        *(inputs, params, sums, steps * rows),
        **_sizes(layers),
        PADDED=_padded(layers.num_inputs),
        TILE=_INPUT_TILE,
        num_warps=4,
    )
    return sums


def _padded(width: int) -> int:
    """The least width that products of tiles take."""
    return max(16, 1 << (width - 1).bit_length())


def _sizes(layers: FusedLayers) -> dict[str, int]:
    """The kernels' constants."""
    size = layers.size
    return {
        "INPUTS": layers.num_inputs,
        "H": size,
        "UNITS": _padded(size),
    }


class _Plan(NamedTuple):
    """How a kernel of all steps is built, so that shared memory holds what it keeps there."""

    keep: bool
    """Whether the weights are kept for all steps, or loaded at every one."""
    num_stages: int
    """Steps whose operands are on their way at once, and one."""
    num_warps: int
    """One for every eight columns of a product; those of 16 columns are not divided."""

    @classmethod
    def of(cls, layers: FusedLayers, num_programs: int) -> "_Plan":
        units, num_layers = _padded(layers.size), layers.num_layers
        weights = 32 * (2 * num_layers - 1) * units**2  # two halves of four gates, 4 bytes each
        ahead = 16 * _ROWS * units * (5 * num_layers + 2)
        spare = _shared_memory(layers.device) - weights - 4 * _ROWS * units * 4
        # Many programs hide each other's latency, if two fit.
        return cls(
            keep=spare >= 0,
            num_stages=3 if spare >= ahead and num_programs < _MANY else 1,
            num_warps=1 if units == 16 else units // 8,
        )


@functools.cache
def _scratch(device: torch.device) -> int:
    """Numbers that a replay may write at once."""
    if device.type == "cpu":  # Triton's interpreter
        return 2**24
    return torch.cuda.get_device_properties(device).total_memory // (4 * _SHARE)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may have."""
    if device.type == "cpu":  # Triton's interpreter
        return 2**17
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return int(properties["max_shared_mem"])
