"""One step of many problems' rows on a GPU: what is given is checked here, and launched."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from haltwise._core.errors import require
from haltwise._kernels import fused
from haltwise._kernels.fused.layers import FusedLayers
from haltwise._kernels.fused.packing import is_resident
from haltwise._kernels.fused.step import step_rows
from haltwise._kernels.operands import require_dims, require_operand, state_operands

__all__ = ["num_processors", "step"]

_BLOCK, _WARPS = 64, 4  # rows of a program, and warps that share them
_PROGRAMS = 3  # at once on a multiprocessor


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 in the interpreter."""
    if device.type == "cpu":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def step(
    layers: FusedLayers,
    grad: Tensor,
    hidden: Tensor,
    cell: Tensor,
    pooled: Tensor,
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Coordinatewise.step`; `pooled` is the mean and the inverse root mean square, [B, 2]."""
    num_problems, dim = require_dims("the gradient", grad, "BD")
    state_shape = num_problems, dim, layers.num_layers, layers.size
    given = [
        ("the gradient", grad, (num_problems, dim)),
        *state_operands(hidden, cell, state_shape),
        ("the pooled gradient", pooled, (num_problems, 2)),
    ]
    for name, tensor, shape in given:
        require_operand(name, tensor, shape, torch.float32, layers.device)
    require(hidden.numel() < 2**31 * layers.size, f"{num_problems * dim} coordinates are too many")
    grad, pooled = grad.detach().contiguous(), pooled.detach().contiguous()
    old = hidden.detach().contiguous(), cell.detach().contiguous()
    in_place = in_place and all(
        own.data_ptr() == state.data_ptr() and not state.requires_grad
        for own, state in zip(old, (hidden, cell), strict=True)
    )
    in_place = in_place and hidden.untyped_storage().data_ptr() != cell.untyped_storage().data_ptr()
    new = (hidden, cell) if in_place else (torch.empty_like(old[0]), torch.empty_like(old[1]))
    updates = torch.empty_like(grad)
    num_rows = grad.numel()
    if num_rows:
        programs = min(-(-num_rows // _BLOCK), _PROGRAMS * num_processors(grad.device))
        packed, readout = layers.packed()
        with fused.launching(grad.device):
            step_rows[(programs,)](
                *(grad, pooled, *old, *new, updates, packed, readout),
                *(num_rows, dim, float(layers.scale)),
                FIRST=0,
                LAST=layers.num_layers,
                LAYERS=layers.num_layers,
                H=layers.size,
                UA=layers.tiles.first,
                UB=layers.tiles.second,
                INPUTS=layers.num_inputs,
                OUTPUTS=layers.num_outputs,
                RESIDENT=is_resident(layers.tiles, layers.num_layers),
                BLOCK=_BLOCK,
                num_warps=_WARPS,
                num_stages=1,
            )
    if in_place:
        for tensor in new:
            if not tensor.is_inference():
                increment_version(tensor)  # graphs that saved it notice
    return updates, new[0][:, :, -1].mean(1), *new
