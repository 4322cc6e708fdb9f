"""Stacked LSTM over many independent rows: one step, or a sequence.

N rows, I inputs, L layers of H units, T steps. A layer's weight is [4H, fan_in + H], the columns
of its input first; gates lie in the order of `nn.LSTMCell`: input, forget, candidate, output.
Hidden and cell states are [N, L, H].

CPU tensors go through the compiled kernel (`haltwise._kernels.native`), CUDA tensors through the
LSTM that PyTorch brings for them (cuDNN), and all others through the reference.
"""

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from haltwise._kernels import native
from haltwise._kernels.operands import require_dims, require_operand
from haltwise._kernels.reference import reference_lstm_sequence, reference_lstm_step

__all__ = ["lstm_sequence", "lstm_step"]


def lstm_step(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Take one step of a stacked LSTM, without a graph; the old state is left as it was.

    Args:
        inputs: Shape [N, I].
        hidden: Shape [N, L, H].
        cell: Shape [N, L, H].
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].

    Returns:
        Hidden and cell state after the step, each [N, L, H].

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other, or a tensor is not a plain one.
    """
    with torch.no_grad():
        if native.serves(biases[0]):
            layers = native.Layers(weights, biases)
            _, *new = native.forward(layers, inputs.unsqueeze(0), hidden, cell)
            return new[0], new[1]
        _require_operands(inputs.unsqueeze(0), hidden, cell, weights, biases)
        own = _device_lstm_step if inputs.is_cuda else reference_lstm_step
        return own(inputs, hidden, cell, weights, biases)


def lstm_sequence(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Run T steps of a stacked LSTM, differentiable in the state and the parameters.

    Through the compiled kernel it is differentiable once, and the backward recomputes the forward,
    so a graph holds no more than the arguments, whatever T. Inputs are constants there; should
    they require a gradient, the reference runs.

    Args:
        inputs: Shape [T, N, I], T at least 1.
        hidden: Shape [N, L, H].
        cell: Shape [N, L, H].
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].

    Returns:
        The top layer's outputs [T, N, H]; hidden and cell state after the last step, [N, L, H].

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other, or a tensor is not a plain one.
    """
    constant = not (torch.is_grad_enabled() and inputs.requires_grad)
    if constant and native.serves(biases[0]):
        params = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
        result: tuple[Tensor, Tensor, Tensor] = _NativeSequence.apply(  # type: ignore[no-untyped-call]
            inputs, hidden, cell, *params
        )
        return result
    _require_operands(inputs, hidden, cell, weights, biases)
    own = _device_lstm_sequence if inputs.is_cuda else reference_lstm_sequence
    return own(inputs, hidden, cell, weights, biases)


@final
class _NativeSequence(torch.autograd.Function):
    """`lstm_sequence` by the compiled kernel; parameters come as weight, bias, weight, bias, ..."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, hidden: Tensor, cell: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(inputs, hidden, cell, *params)
        ctx.set_materialize_grads(False)
        return native.forward(native.Layers(params[::2], params[1::2]), inputs, hidden, cell)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_outputs: Tensor | None, d_hidden: Tensor | None, d_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs, hidden, cell, *params = ctx.saved_tensors
        d_first_hidden, d_first_cell, d_params = native.backward(
            native.Layers(params[::2], params[1::2]),
            inputs,
            hidden,
            cell,
            native.Cotangents(outputs=d_outputs, hidden=d_hidden, cell=d_cell),
            wants_state=any(ctx.needs_input_grad[1:3]),
        )
        return None, d_first_hidden, d_first_cell, *d_params


def _device_lstm_step(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """`lstm_step` by the cell that PyTorch brings: two products and one pass a layer."""
    new_hidden, new_cell = torch.empty_like(hidden), torch.empty_like(cell)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        of_input, of_hidden = weight.split((weight.shape[1] - hidden.shape[2], hidden.shape[2]), 1)
        state = (hidden[:, layer], cell[:, layer])
        inputs, new_cell[:, layer] = torch.lstm_cell(
            inputs, state, of_input, of_hidden, bias, torch.zeros_like(bias)
        )
        new_hidden[:, layer] = inputs
    return new_hidden, new_cell


def _device_lstm_sequence(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` by the LSTM that PyTorch brings for the device (cuDNN on CUDA)."""
    size = hidden.shape[2]
    flat: list[Tensor] = []
    for weight, bias in zip(weights, biases, strict=True):
        of_input, of_hidden = weight.split((weight.shape[1] - size, size), dim=1)
        flat += [of_input.contiguous(), of_hidden.contiguous(), bias, torch.zeros_like(bias)]
    state = (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous())
    with warnings.catch_warnings():  # the weights are not a single block, which costs a copy
        warnings.filterwarnings("ignore", message="RNN module weights", category=UserWarning)
        outputs, hidden, cell = torch.lstm(
            inputs, state, flat, True, len(weights), 0.0, torch.is_grad_enabled(), False, False
        )
    return outputs, hidden.transpose(0, 1), cell.transpose(0, 1)


def _require_operands(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> None:
    """Refuse arguments of a sequence that do not fit each other, as `native` does."""
    if torch.compiler.is_compiling():
        return
    steps, rows, fan_in = require_dims("the inputs", inputs, "TNI")
    num_layers, size = len(biases), biases[0].numel() // 4
    dtype, device = biases[0].dtype, biases[0].device
    require_operand("the inputs", inputs, (steps, rows, fan_in), dtype, device)
    for name, state in (("the hidden state", hidden), ("the cell state", cell)):
        require_operand(name, state, (rows, num_layers, size), dtype, device)
    for weight, bias in zip(weights, biases, strict=True):
        require_operand("a layer's weight", weight, (4 * size, fan_in + size), dtype, device)
        require_operand("a layer's bias", bias, (4 * size,), dtype, device)
        fan_in = size
