"""Parameters of a stacked LSTM, checked, as the fused kernels take them."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise._kernels.fused.packing import Tiles, pack, pack_readout
from haltwise._kernels.operands import (
    Operand,
    layer_operands,
    readout_operands,
    require_operand,
)

__all__ = ["FusedLayers"]


@final
class FusedLayers:
    """Parameters that were checked once, and whose values are read at every use.

    Args:
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].
        readout: Of a coordinatewise optimizer, otherwise None: weight [O, H] and bias [O] of its
            read-out, where O is 1, 2 or 4, and the factor of its updates.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        readout: tuple[Tensor, Tensor, float] | None = None,
    ) -> None:
        operands = layer_operands(weights, biases)
        self.num_layers, self.size = len(weights), biases[0].numel() // 4
        self.dtype, self.device = biases[0].dtype, biases[0].device
        self.num_inputs, self.num_outputs = weights[0].shape[1] - self.size, 0
        self.scale = 1.0
        if readout is not None:
            weight, bias, self.scale = readout
            self.num_outputs = bias.numel()
            operands += readout_operands(weight, bias, self.num_inputs, self.size)
        self.tiles = Tiles.of(self.size)
        self.parameters = [tensor for _, tensor, _ in operands]
        """Weight and bias of every layer in turn, those of the read-out last."""
        self._check(operands)
        self._seen: list[tuple[int, int]] | None = None
        self._packed: tuple[Tensor, Tensor] | None = None

    def _check(self, table: Sequence[Operand]) -> None:
        for name, tensor, shape in table:
            require_operand(name, tensor, shape, self.dtype, self.device)

    def operand(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor of the parameters' dtype and device, checked, its elements in order."""
        require_operand(name, tensor, shape, self.dtype, self.device)
        try:
            tensor.untyped_storage().data_ptr()
        except RuntimeError:
            raise InputError(
                f"{name} has no memory: it is inside a transformation such as torch.func.vmap, "
                "which only HALTWISE_KERNEL=plain supports"
            ) from None
        return tensor.detach().resolve_neg().contiguous()

    def packed(self) -> tuple[Tensor, Tensor]:
        """Layers and read-out in the order of a step's kernels, anew when their values change."""
        seen = None
        if not any(tensor.is_inference() for tensor in self.parameters):
            seen = [(tensor.data_ptr(), tensor._version) for tensor in self.parameters]
        if self._packed is None or seen is None or seen != self._seen:
            layers, readout = self.parameters[:-2], self.parameters[-2:]
            self._packed = pack(layers[::2], layers[1::2]), pack_readout(*readout)
            self._seen = seen
        return self._packed

    def block(self) -> Tensor:
        """All parameters in turn."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def split(self, block: Tensor) -> list[Tensor]:
        """Such a block, in the parameters' shapes."""
        pieces = block.split([parameter.numel() for parameter in self.parameters])
        pairs = zip(pieces, self.parameters, strict=True)
        return [piece.view(parameter.shape) for piece, parameter in pairs]
