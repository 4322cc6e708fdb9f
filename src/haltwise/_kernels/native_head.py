"""The compiled kernel of a halter's head: an LSTM layer and a perceptron, see `head.Head`.

B items, T steps, F features, R read-outs, M units of memory, K outputs. Nothing reaches the kernel
but what `native.operand` has checked or `native.empty` has made.
"""

import ctypes
from collections.abc import Sequence
from typing import final

from torch import Tensor

from haltwise._core.errors import require
from haltwise._kernels import native
from haltwise._kernels.operands import Operand, require_dims, state_operands

__all__ = ["HeadLayers", "backward", "forward"]

State = tuple[Tensor, Tensor]
_MAX_DEPTH = 3  # maps of the perceptron


class _HeadShape(native.Shape):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("steps", "rows", "features", "readouts"),
            *("memory", "width", "outputs", "depth", "begin", "end"),
        )
    )


@final
class HeadLayers(native.Parameters):
    """Parameters of a head, checked once, as the kernel takes them.

    Args:
        memory: Weight [4M, F + R + M] and bias [4M]; None where nothing is remembered.
        weights: Of the perceptron's 1 to 3 layers; hidden layers have one size.
        biases: Of its layers.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """

    def __init__(
        self, memory: State | None, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> None:
        self.depth = len(weights)
        require(
            1 <= self.depth == len(biases) <= _MAX_DEPTH,
            f"a perceptron has 1 to {_MAX_DEPTH} layers, each with a weight and a bias, got "
            f"{self.depth} weights and {len(biases)} biases",
        )
        self.memory = 0 if memory is None else memory[1].numel() // 4
        self.outputs = biases[-1].numel()
        self.width = biases[0].numel() if self.depth > 1 else 0
        fan_in = require_dims("a layer's weight", weights[0], "OI")[1]
        self.num_inputs = fan_in - self.memory
        table: list[Operand] = []
        if memory is not None:
            table.append(("the memory's weight", memory[0], (4 * self.memory, fan_in)))
            table.append(("the memory's bias", memory[1], (4 * self.memory,)))
        fan_outs = [self.width] * (self.depth - 1) + [self.outputs]
        for weight, bias, fan_out in zip(weights, biases, fan_outs, strict=True):
            table.append(("a layer's weight", weight, (fan_out, fan_in)))
            table.append(("a layer's bias", bias, (fan_out,)))
            fan_in = fan_out
        super().__init__(table, biases[0].dtype)
        absent = [None] * (0 if self.memory else 2)
        self.pointers = native.addresses([*absent, *self.parameters])

    def shape(self, readouts: Tensor) -> _HeadShape:
        """The sizes of one call of the kernel, given the read-outs."""
        rows, steps, size = readouts.shape
        return _HeadShape(
            *(steps, rows, self.num_inputs - size, size),
            *(self.memory, self.width, self.outputs, self.depth, 0, rows),
        )


def forward(
    layers: HeadLayers, features: Tensor, readouts: Tensor, state: State | None
) -> tuple[Tensor, State | None]:
    """Run T steps on features [B, T, F] and read-outs [B, T, R] from a state, each [B, 1, M].

    Returns:
        Outputs [B, T, K]; the state after the last step. A state is None where nothing is
        remembered.
    """
    layers.require_unmoved()
    rows, steps, _ = require_dims("the features", features, "BTF")
    table = _sequences(layers, features, readouts)
    require(
        (state is None) == (layers.memory == 0),
        "a halter's state must be from its own `init`",
    )
    if state is not None:
        table += state_operands(*state, (rows, 1, layers.memory))
    given = layers.operands(table)
    outputs = native.empty(given[0], rows, steps, layers.outputs)
    after = [native.empty(value) for value in given[2:]]
    nothing = [None] * (2 - len(after))
    operands = [*given, *nothing, layers.pointers, outputs, *after, *nothing]
    native.run("head_forward", layers.dtype, layers.shape(readouts), operands)
    return outputs, (after[0], after[1]) if after else None


def backward(
    layers: HeadLayers,
    features: Tensor,
    readouts: Tensor,
    d_outputs: Tensor,
    *,
    wants_readouts: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Backpropagate through T steps from a state of zeros, which are recomputed.

    Steps behind the last derivative that is not zero are not even that: nothing of them counts,
    finite or not.

    Args:
        layers: The parameters.
        features: Shape [B, T, F].
        readouts: Shape [B, T, R].
        d_outputs: Derivative with respect to the outputs, shape [B, T, K].
        wants_readouts: Whether the derivatives of the read-outs are wanted.

    Returns:
        Derivatives of the read-outs by way of the perceptron alone [B, T, R], None unless wanted;
        of `layers.parameters`.
    """
    layers.require_unmoved()
    rows, steps, _ = require_dims("the features", features, "BTF")
    table = _sequences(layers, features, readouts)
    table.append(("the outputs' derivative", d_outputs, (rows, steps, layers.outputs)))
    features, readouts, d_outputs = layers.operands(table)
    d_readouts = native.empty(readouts) if wants_readouts else None
    whole = layers.shape(readouts)
    sums = layers.new_sums(whole)
    operands = [features, readouts, layers.pointers, d_outputs, d_readouts]
    native.run("head_backward", layers.dtype, whole, operands, sums)
    return d_readouts, layers.summed(sums)


def _sequences(layers: HeadLayers, features: Tensor, readouts: Tensor) -> list[Operand]:
    """What steps read, to be checked."""
    size = require_dims("the read-outs", readouts, "BTR")[2]
    shape = features.shape[:2]
    return [
        ("the features", features, (*shape, layers.num_inputs - size)),
        ("the read-outs", readouts, (*shape, size)),
    ]
