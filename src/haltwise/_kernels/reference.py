"""Stacked LSTM in plain PyTorch: the reference that says what the compiled kernel computes.

Differentiable in everything by autograd. It is the oracle of the tests, and what runs on CPUs
without the compiled kernel. Shapes as in `haltwise._kernels.lstm`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["reference_lstm_sequence", "reference_lstm_step"]


def reference_lstm_step(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """`lstm_step` in plain PyTorch, differentiable in everything."""
    _, new_hidden, new_cell = reference_lstm_sequence(
        inputs.unsqueeze(0), hidden, cell, weights, biases
    )
    return new_hidden, new_cell


def reference_lstm_sequence(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` in plain PyTorch, differentiable in everything."""
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
