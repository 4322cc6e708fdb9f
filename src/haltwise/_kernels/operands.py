"""What a tensor must be to enter a kernel, and the sentences that refuse all others."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from haltwise._core.errors import InputError, require

__all__ = [
    "CPU",
    "LOG_RANGE",
    "Operand",
    "is_dense",
    "is_watched",
    "layer_operands",
    "readout_operands",
    "replay_operands",
    "require_dims",
    "require_operand",
    "state_operands",
]

CPU = torch.device("cpu")
LOG_RANGE = 10.0
"""p, the width in nats of the logarithmic range of a gradient's features."""
_PLAIN_TYPES = (Tensor, nn.Parameter)
_STRIDED = torch.strided
_NEEDED = {"T": "step", "D": "coordinate"}  # there may be no rows and no problems

Operand = tuple[str, Tensor, tuple[int, ...]]
"""A tensor, its name in sentences, and the shape that it must have."""


def is_dense(tensor: Tensor) -> bool:
    """Whether it is an ordinary dense tensor, which `require_operand` does not refuse by kind."""
    return type(tensor) in _PLAIN_TYPES and tensor.layout is _STRIDED and not tensor.is_nested


def is_watched() -> bool:
    """Whether PyTorch compiles, traces or differentiates forward what it sees done.

    It does not see what a kernel does.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or forward_ad._current_level >= 0
    )


def require_operand(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse anything but a plain dense tensor of this shape, dtype and device.

    Tensor subclasses (`DTensor`, `FakeTensor` and others) need not have the memory that their
    shape announces.
    """
    try:
        fits = (
            type(tensor) in _PLAIN_TYPES
            and tensor.shape == shape
            and tensor.dtype is dtype
            and tensor.layout is _STRIDED
            and (tensor.is_cpu if device is CPU else tensor.device == device)
        )
    except RuntimeError:  # a nested tensor has no shape
        fits = False
    if not fits:
        raise InputError(_complaint(name, tensor, shape, dtype, device))


def require_dims(name: str, tensor: Tensor, meaning: str) -> tuple[int, ...]:
    """The tensor's shape: a dimension for each letter of `meaning`, at least 1 step (T) and D."""
    try:
        shape = tensor.shape
    except (AttributeError, RuntimeError):  # a list; a nested tensor
        raise InputError(_not_plain(name, tensor)) from None
    if len(shape) != len(meaning):
        raise InputError(
            f"{name} must have the dimensions [{', '.join(meaning)}], got the shape {list(shape)}"
        )
    if 0 in shape:
        for letter, size in zip(meaning, shape, strict=True):
            if size == 0 and letter in _NEEDED:
                raise InputError(
                    f"{name} must have at least 1 {_NEEDED[letter]}, got the shape {list(shape)}"
                )
    return shape


def layer_operands(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Operand]:
    """Weight and bias of every layer in turn, to be checked."""
    if not len(weights) == len(biases) > 0:
        raise InputError(
            f"every layer needs a weight and a bias, got {len(weights)} and {len(biases)}"
        )
    size = biases[0].numel() // 4
    fan_in = require_dims("a layer's weight", weights[0], "OI")[1] - size
    if size < 1 or fan_in < 1:
        raise InputError(f"a layer of {size} units cannot have {fan_in} inputs")
    operands: list[Operand] = []
    for weight, bias in zip(weights, biases, strict=True):
        operands += (
            ("a layer's weight", weight, (4 * size, fan_in + size)),
            ("a layer's bias", bias, (4 * size,)),
        )
        fan_in = size
    return operands


def readout_operands(weight: Tensor, bias: Tensor, num_inputs: int, size: int) -> list[Operand]:
    """Weight [O, H] and bias [O] of a coordinatewise optimizer's read-out, to be checked."""
    num_outputs = bias.numel()
    if num_inputs not in (2, 4) or num_outputs not in (1, 2, 4):
        raise InputError(
            "a coordinatewise LSTM has 2 or 4 inputs and 1, 2 or 4 outputs, got "
            f"{num_inputs} and {num_outputs}"
        )
    return [
        ("the read-out's weight", weight, (num_outputs, size)),
        ("the read-out's bias", bias, (num_outputs,)),
    ]


def state_operands(hidden: Tensor, cell: Tensor, shape: tuple[int, ...]) -> list[Operand]:
    """Both states, to be checked."""
    return [("the hidden state", hidden, shape), ("the cell state", cell, shape)]


class _Layers(Protocol):
    num_layers: int
    size: int
    num_inputs: int
    num_outputs: int


def replay_operands(
    layers: _Layers, given: Tensor, state: tuple[Tensor, Tensor], *optional: Tensor | None
) -> tuple[tuple[int, int, int], list[tuple[str, Tensor | None, tuple[int, ...]]]]:
    """T, N and B of a call of `native.backward`, and all that it is given in turn, to be checked.

    Raises:
        InputError: It does not fit together.
    """
    pooled, _, d_updates, *_ = optional
    reads_out, size = layers.num_outputs > 0, layers.size
    require(
        (pooled is not None) == reads_out and (reads_out or d_updates is None),
        "layers with a read-out take gradients, and others inputs",
    )
    steps, rows, *_ = require_dims("the steps' inputs", given, "TN" if reads_out else "TNI")
    num_problems = rows
    if pooled is not None:
        num_problems = require_dims("the pooled gradients", pooled, "TB2")[1]
        require(
            rows % num_problems == 0 if num_problems else rows == 0,
            f"{rows} coordinates cannot belong to {num_problems} problems of one size",
        )
    state_shape = rows, layers.num_layers, size
    expected = {
        "the pooled gradients": (steps, num_problems, 2),
        "a derivative of outputs": (steps, rows, size),
        "a derivative of updates": (steps, rows),
        "a derivative of sums": (steps, num_problems, size),
        "a derivative of the hidden state": state_shape,
        "a derivative of the cell state": state_shape,
    }
    others = zip(expected, optional, expected.values(), strict=True)
    named = "the gradients" if reads_out else "the inputs"
    shape = (steps, rows) if reads_out else (steps, rows, layers.num_inputs)
    table = [(named, given, shape), *state_operands(*state, state_shape), *others]
    return (steps, rows, num_problems), table


def _not_plain(name: str, tensor: object) -> str:
    nested = isinstance(tensor, Tensor) and tensor.is_nested
    return (
        f"{name} is a {'nested tensor' if nested else type(tensor).__name__}, which a learned rule "
        "or halter cannot read; pass a plain torch.Tensor (of a DTensor, its local part: "
        "`to_local()`)"
    )


def _complaint(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str:
    if type(tensor) not in _PLAIN_TYPES or tensor.is_nested:
        return _not_plain(name, tensor)
    if tensor.shape != shape:
        return (
            f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}; gradient, state "
            "and weights must belong to the same problems: begin with a new state from `init`"
        )
    if tensor.dtype is not dtype:
        return f"{name} is {tensor.dtype}, but the weights are {dtype}; convert one by `to()`"
    if tensor.layout is not _STRIDED:
        return f"{name} has the layout {tensor.layout}; make it dense by `to_dense()`"
    return f"{name} is on {tensor.device}, but the weights are on {device}; move one by `to()`"
