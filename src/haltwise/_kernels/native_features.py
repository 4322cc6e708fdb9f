"""The compiled kernel of the features of an optimization, see `halting.features.optimization`."""

import ctypes
from typing import NamedTuple

from torch import Tensor

from haltwise._kernels import native
from haltwise._kernels.operands import Operand, require_dims

__all__ = ["FeatureMemory", "optimization_features"]

_NUM_SIGNALS, _NUM_FEATURES, _NUM_CHANGING = 13, 26, 9


class _FeatureShape(native.Shape):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("steps", "rows", "begin", "end"))


class FeatureMemory(NamedTuple):
    """What the next step is compared with."""

    previous: Tensor
    """Features whose change is one, too, shape [B, 9]."""
    last_loss: Tensor
    """Shape [B]."""
    lowest: Tensor
    """The least loss so far, shape [B]."""


def optimization_features(
    signals: Tensor, price: Tensor, memory: FeatureMemory
) -> tuple[Tensor, FeatureMemory]:
    """Features [B, K, 26] of the signals [B, K, 13] of K steps at prices [B], and the memory after.

    All are plain CPU tensors in the dtype of the signals; others are refused.
    """
    rows, steps, _ = require_dims("the signals", signals, "BTS")
    table: tuple[Operand, ...] = (
        ("the signals", signals, (rows, steps, _NUM_SIGNALS)),
        ("the price", price, (rows,)),
        ("the features' memory", memory.previous, (rows, _NUM_CHANGING)),
        ("the features' memory", memory.last_loss, (rows,)),
        ("the features' memory", memory.lowest, (rows,)),
    )
    given = [native.operand(name, value, shape, signals.dtype) for name, value, shape in table]
    features = native.empty(given[0], rows, steps, _NUM_FEATURES)
    after = FeatureMemory(*map(native.empty, given[2:]))
    operands = [*given, features, *after]
    native.run("features", signals.dtype, _FeatureShape(steps, rows, 0, rows), operands)
    return features, after
