"""One step of many problems' rows on a GPU: what is given is checked here, and launched."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from haltwise._core.errors import require
from haltwise._kernels import fused
from haltwise._kernels.fused.packing import Tiles, is_resident, pack, pack_readout
from haltwise._kernels.fused.step import step_rows
from haltwise._kernels.operands import (
    layer_operands,
    require_dims,
    require_operand,
    state_operands,
)

__all__ = ["PackedLayers", "num_processors", "step"]

_BLOCK, _WARPS = 64, 4  # rows of a program, and warps that share them
_PROGRAMS = 3  # at once on a multiprocessor


@final
class PackedLayers:
    """Parameters of a coordinatewise optimizer, checked once, as the kernels take them.

    Packed anew when their values have changed.

    Args:
        weights: L tensors [4H, fan_in + H], float32.
        biases: L tensors [4H].
        readout: Weight [O, H] and bias [O], where O is 1, 2 or 4, and the factor of updates.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        readout: tuple[Tensor, Tensor, float],
    ) -> None:
        weight, bias, self.scale = readout
        operands = layer_operands(weights, biases)
        self.size, self.num_layers = biases[0].numel() // 4, len(biases)
        self.num_inputs, self.num_outputs = weights[0].shape[1] - self.size, bias.numel()
        require(
            self.num_inputs in (2, 4) and self.num_outputs in (1, 2, 4),
            "a coordinatewise LSTM has 2 or 4 inputs and 1, 2 or 4 outputs, got "
            f"{self.num_inputs} and {self.num_outputs}",
        )
        operands.append(("the read-out's weight", weight, (self.num_outputs, self.size)))
        operands.append(("the read-out's bias", bias, (self.num_outputs,)))
        self.device = bias.device
        for name, tensor, shape in operands:
            require_operand(name, tensor, shape, torch.float32, self.device)
        self.tiles = Tiles.of(self.size)
        self._layers, self._readout = (list(weights), list(biases)), (weight, bias)
        self._seen: list[tuple[int, int]] | None = None
        self._packed: tuple[Tensor, Tensor] | None = None

    def packed(self) -> tuple[Tensor, Tensor]:
        """Layers and read-out in the kernels' order."""
        every = [*self._layers[0], *self._layers[1], *self._readout]
        seen = None
        if not any(tensor.is_inference() for tensor in every):
            seen = [(tensor.data_ptr(), tensor._version) for tensor in every]
        if self._packed is None or seen is None or seen != self._seen:
            self._packed = pack(*self._layers), pack_readout(*self._readout)
            self._seen = seen
        return self._packed


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 in the interpreter."""
    if device.type == "cpu":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def step(
    layers: PackedLayers,
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
