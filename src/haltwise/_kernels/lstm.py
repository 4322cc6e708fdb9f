"""Stacked LSTM over many independent rows: one step, or a sequence.

N rows, I inputs, L layers of H units, T steps. A layer's weight is [4H, fan_in + H], the columns
of its input first; gates lie in the order of `nn.LSTMCell`: input, forget, candidate, output.
Hidden and cell states are [N, L, H].

CPU tensors go through the compiled kernel (`haltwise._kernels.native`), CUDA tensors through the
LSTM that PyTorch brings for them (cuDNN), and all others through the reference.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from haltwise._kernels import fused, native
from haltwise._kernels.operands import (
    layer_operands,
    require_dims,
    require_operand,
    state_operands,
)

__all__ = ["lstm_sequence", "lstm_step", "reference_lstm_sequence"]


@torch.no_grad()
def lstm_step(
    inputs: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """`lstm_sequence` of one step, inputs [N, I], without a graph: the state after, [N, L, H]."""
    _, hidden, cell = lstm_sequence(inputs.unsqueeze(0), hidden, cell, weights, biases)
    return hidden, cell


def lstm_sequence(
    inputs: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor]
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
    kernel = _kernel_for(inputs, weights, biases)
    if kernel is not None and not (torch.is_grad_enabled() and inputs.requires_grad):
        if not torch.is_grad_enabled():
            return kernel.forward(kernel.layers(weights, biases), inputs, hidden, cell)
        params = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
        result: tuple[Tensor, Tensor, Tensor] = _KernelSequence.apply(  # type: ignore[no-untyped-call]
            kernel, inputs, hidden, cell, *params
        )
        return result
    if not torch.compiler.is_compiling():
        _require_operands(inputs, hidden, cell, weights, biases)
    own = device_lstm_sequence if inputs.is_cuda else reference_lstm_sequence
    return own(inputs, hidden, cell, weights, biases)


class _Kernel(NamedTuple):
    """What is called of `native` or of its twin for GPUs."""

    layers: Callable[[Sequence[Tensor], Sequence[Tensor]], Any]
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[list[Tensor], list[Tensor]]]


def _kernel_for(inputs: Tensor, weights: list[Tensor], biases: list[Tensor]) -> _Kernel | None:
    """The kernel that serves a sequence, whose operands are not checked yet."""
    if weights and biases and (inputs.is_cuda or fused.is_interpreted()):
        size = biases[0].numel() // 4
        num_inputs = weights[0].numel() // max(4 * size, 1) - size
        is_small = num_inputs <= fused.MAX_INPUTS
        if is_small and fused.serves(inputs.device, inputs.dtype, size, len(biases)):
            from haltwise._kernels.fused import layers, sequences

            return _Kernel(layers.FusedLayers, sequences.forward, sequences.backward)
    if native.serves(inputs):
        return _Kernel(native.Layers, native.forward, native.backward)
    return None


@final
class _KernelSequence(torch.autograd.Function):
    """`lstm_sequence` by a kernel; parameters come as weight, bias, weight, bias, ..."""

    @staticmethod
    def forward(
        ctx: Any, kernel: _Kernel, inputs: Tensor, hidden: Tensor, cell: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.kernel = kernel
        ctx.save_for_backward(inputs, hidden, cell, *params)
        ctx.set_materialize_grads(False)
        layers = kernel.layers(params[::2], params[1::2])
        return kernel.forward(layers, inputs, hidden, cell)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_outputs: Tensor | None, d_hidden: Tensor | None, d_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs, hidden, cell, *params = ctx.saved_tensors
        kernel: _Kernel = ctx.kernel
        d_first, d_params = kernel.backward(
            *(kernel.layers(params[::2], params[1::2]), inputs, hidden, cell),
            d_outputs=d_outputs,
            d_hidden=d_hidden,
            d_cell=d_cell,
            wants_state=any(ctx.needs_input_grad[2:4]),
        )
        return None, None, *(d_first or (None, None)), *d_params


def reference_lstm_sequence(
    inputs: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` in plain PyTorch, differentiable in everything: the oracle of the tests.

    It says what the compiled kernel computes, and runs on CPUs without that.
    """
    hiddens, cells = list(hidden.unbind(1)), list(cell.unbind(1))
    outputs = []
    for value in inputs.unbind(0):
        below = value
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            gates = torch.addmm(bias, torch.cat((below, hiddens[layer]), dim=1), weight.T)
            enter, forget, candidate, leave = gates.chunk(4, dim=1)
            cells[layer] = forget.sigmoid() * cells[layer] + enter.sigmoid() * candidate.tanh()
            hiddens[layer] = below = leave.sigmoid() * cells[layer].tanh()
        outputs.append(below)
    return torch.stack(outputs), torch.stack(hiddens, 1), torch.stack(cells, 1)


def device_lstm_sequence(
    inputs: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` by the LSTM that PyTorch brings for the device (cuDNN on CUDA)."""
    size = hidden.shape[2]
    flat: list[Tensor] = []
    for weight, bias in zip(weights, biases, strict=True):
        of_input, of_hidden = weight.split((weight.shape[1] - size, size), dim=1)
        flat += [of_input, of_hidden, bias, torch.zeros_like(bias)]
    if len(inputs) == 1 and not torch.is_grad_enabled():
        return _device_lstm_step(inputs, hidden, cell, flat)
    flat = [tensor.contiguous() for tensor in flat]
    state = (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous())
    with warnings.catch_warnings():  # the weights are not a single block, which costs a copy
        warnings.filterwarnings("ignore", message="RNN module weights", category=UserWarning)
        outputs, hidden, cell = torch.lstm(
            inputs, state, flat, True, len(weights), 0.0, torch.is_grad_enabled(), False, False
        )
    return outputs, hidden.transpose(0, 1), cell.transpose(0, 1)


def _device_lstm_step(
    inputs: Tensor, hidden: Tensor, cell: Tensor, flat: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """A sequence of one step by the device's cell: two products and one pass a layer."""
    new_hidden, new_cell = torch.empty_like(hidden), torch.empty_like(cell)
    below = inputs[0]
    for layer in range(hidden.shape[1]):
        state = (hidden[:, layer], cell[:, layer])
        below, new_cell[:, layer] = torch.lstm_cell(below, state, *flat[4 * layer : 4 * layer + 4])
        new_hidden[:, layer] = below
    return below.unsqueeze(0), new_hidden, new_cell


def _require_operands(
    inputs: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> None:
    """Refuse arguments of a sequence that do not fit each other, as `native` does."""
    layers = layer_operands(weights, biases)
    steps, rows, _ = require_dims("the inputs", inputs, "TNI")
    size = biases[0].numel() // 4
    table = (
        ("the inputs", inputs, (steps, rows, weights[0].shape[1] - size)),
        *state_operands(hidden, cell, (rows, len(layers) // 2, size)),
        *layers,
    )
    for name, tensor, shape in table:
        require_operand(name, tensor, shape, biases[0].dtype, biases[0].device)
