"""The compiled kernel of a step of the rule `mlp`, see `haltwise.update_rules.mlp`.

B problems of D coordinates, H units of a hidden layer.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import increment_version

from haltwise._kernels import native
from haltwise._kernels.operands import Operand, require_dims

__all__ = ["LEAST_DIM", "MLPConstants", "MLPStates", "step"]

LEAST_DIM = 8
"""D from which on the kernel pays: it takes up to 64 coordinates of one problem at once."""
_SEGMENT = 192  # coordinates whose outputs are summed together
_NUM_FACTS, _NUM_OWN, _NUM_OUTPUTS = 9, 13, 5


class _MLPShape(native.Shape):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "rows", "dim", "segments", "units")),
        *((name, ctypes.c_int64) for name in ("begin", "end")),
        ("momenta", ctypes.c_double * 3),
        ("squares", ctypes.c_double * 2),
        *((name, ctypes.c_double) for name in ("agreement", "bound")),
    )


class MLPConstants(NamedTuple):
    """Shares of averages that are kept, and the bound of features."""

    momenta: tuple[float, float, float]
    squares: tuple[float, float]
    agreement: float
    bound: float


class MLPStates(NamedTuple):
    """What is remembered of coordinates."""

    momenta: Tensor
    """Shape [B, D, 3]."""
    squares: Tensor
    """Shape [B, D, 2]."""
    agreement: Tensor
    """Shape [B, D]."""


def step(
    constants: MLPConstants,
    grad: Tensor,
    states: MLPStates,
    facts: Tensor,
    bias: Tensor,
    params: Sequence[Tensor],
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, MLPStates]:
    """Updates [B, D], means of the second layer's outputs [B, H], and the states after.

    Args:
        constants: Of the rule.
        grad: Shape [B, D].
        states: Before the step; plain CPU tensors in the dtype of the gradient, as all are.
        facts: What gradients are multiplied by; what is added to their root mean square; 1 / the
            size of the problem's gradients; corrections for the start of three momenta and of two
            squares at 0; the factor of updates. Shape [B, 9].
        bias: Of the first layer, with what a problem's coordinates share, shape [B, H].
        params: The first layer's weight [H, 13], weight and bias of the second, [H, H] and [H], and
            of the last, [5, H] and [5].
        in_place: Whether new states may take the memory of `states`.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """
    num_problems, dim = require_dims("the gradient", grad, "BD")
    units = require_dims("the second layer's weight", params[1], "OI")[0]
    coordinates = num_problems, dim
    table: tuple[Operand, ...] = (
        ("the gradient", grad, coordinates),
        ("the momenta", states.momenta, (*coordinates, 3)),
        ("the squares", states.squares, (*coordinates, 2)),
        ("the agreement", states.agreement, coordinates),
        ("what is known of the problems", facts, (num_problems, _NUM_FACTS)),
        ("the first layer's bias", bias, (num_problems, units)),
        ("the first layer's weight", params[0], (units, _NUM_OWN)),
        ("the second layer's weight", params[1], (units, units)),
        ("the second layer's bias", params[2], (units,)),
        ("the last layer's weight", params[3], (_NUM_OUTPUTS, units)),
        ("the last layer's bias", params[4], (_NUM_OUTPUTS,)),
    )
    given = [native.operand(name, value, shape, grad.dtype) for name, value, shape in table]
    old = MLPStates(*given[1:4])
    new = MLPStates(*(value if in_place else native.empty(value) for value in old))
    segments = -(-dim // _SEGMENT)
    updates = native.empty(given[0])
    sums = native.empty(given[0], num_problems, segments, units)
    rows = num_problems * segments * _SEGMENT
    whole = _MLPShape(
        *(1, rows, dim, segments, units, 0, rows),
        (ctypes.c_double * 3)(*constants.momenta),
        (ctypes.c_double * 2)(*constants.squares),
        *(constants.agreement, constants.bound),
    )
    operands = [*given[:6], native.addresses(given[6:]), updates, *new, sums]
    native.run("mlp", grad.dtype, whole, operands)
    if in_place:
        for tensor in new:
            if not tensor.is_inference():
                increment_version(tensor)  # graphs that saved it notice
    return updates, sums.sum(1) / dim, new
