"""The compiled kernel of the signals of an optimization, see `haltwise.processes.signals`."""

import ctypes

from torch import Tensor

from haltwise._kernels import native
from haltwise._kernels.operands import Operand, require_dims

__all__ = ["measure"]

_NUM_SIGNALS = 13


class _SignalShape(native.Shape):
    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("steps", "rows", "dim", "first", "begin", "end")
    )


def measure(
    first: int, losses: Tensor, grads: Tensor, updates: Tensor, memory: dict[str, Tensor]
) -> Tensor:
    """Signals of K consecutive steps, shape [B, K, 13].

    Args:
        first: The first of the steps.
        losses: Shape [B, K].
        grads: Shape [B, K, D].
        updates: Shape [B, K, D].
        memory: The gradient and the update before, each [B, D].
    """
    rows, steps, dim = require_dims("the gradients", grads, "BTD")
    table: tuple[Operand, ...] = (
        ("the losses", losses, (rows, steps)),
        ("the gradients", grads, (rows, steps, dim)),
        ("the updates", updates, (rows, steps, dim)),
        ("the last gradient", memory["grad"], (rows, dim)),
        ("the last update", memory["update"], (rows, dim)),
    )
    given = [native.operand(name, value, shape, grads.dtype) for name, value, shape in table]
    signals = native.empty(grads, rows, steps, _NUM_SIGNALS)
    whole = _SignalShape(steps, rows, dim, first, 0, rows)
    native.run("signals", grads.dtype, whole, [*given, signals])
    return signals
