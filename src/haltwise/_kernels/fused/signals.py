"""What a gradient is like, and the signals of a step, in one launch each."""

import torch
from torch import Tensor

from haltwise._core.tensors import log_rms
from haltwise._kernels.fused import MAX_COORDINATES, launching
from haltwise._kernels.fused.problems import norm_kernel, pool_kernel, signals_kernel, tiling
from haltwise._kernels.operands import require_operand

__all__ = ["log_norms", "measure", "pool"]

_NUM_SIGNALS = 13
_AT_ONCE = 512  # coordinates of which signals hold the products


def pool(grads: Tensor) -> Tensor:
    """Mean and inverse root mean square [..., 2] of float32 gradients [..., D]."""
    dim = grads.shape[-1]
    if dim > MAX_COORDINATES:
        inverse = torch.exp(-log_rms(grads).clamp_min(-80))
        return torch.stack((grads.mean(-1), inverse), -1)
    pooled = grads.new_empty(*grads.shape[:-1], 2)
    num_rows = pooled.numel() // 2
    if num_rows:
        with launching(grads.device):
            grid, settings = tiling(num_rows, dim)
            pool_kernel[grid](grads.contiguous(), pooled, num_rows, dim, **settings)
    return pooled


def measure(
    steps: Tensor, losses: Tensor, grads: Tensor, updates: Tensor, memory: dict[str, Tensor]
) -> Tensor:
    """Signals [..., 13] of float32 rows.

    Args:
        steps: Shape [] or [K]; of the last of the dimensions of the losses.
        losses: Shape [...].
        grads: Shape [..., D], D at most `MAX_COORDINATES`.
        updates: Likewise.
        memory: The gradient and the update before, likewise.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """
    shape, dim = losses.shape, grads.shape[-1]
    given = [
        ("the losses", losses, shape),
        ("the gradients", grads, (*shape, dim)),
        ("the updates", updates, (*shape, dim)),
        ("the last gradient", memory["grad"], (*shape, dim)),
        ("the last update", memory["update"], (*shape, dim)),
    ]
    for name, tensor, expected in given:
        require_operand(name, tensor, expected, torch.float32, grads.device)
    require_operand("the steps", steps, steps.shape and shape[-1:], steps.dtype, grads.device)
    signals = grads.new_empty(*shape, _NUM_SIGNALS)
    num_rows = losses.numel()
    if num_rows:
        operands = [tensor.detach().contiguous() for _, tensor, _ in given]
        with launching(grads.device):
            grid, settings = tiling(num_rows, min(dim, _AT_ONCE))
            signals_kernel[grid](
                *(steps.contiguous(), *operands, signals, num_rows, dim, steps.numel()),
                **settings,
            )
    return signals


def log_norms(grads: Tensor) -> Tensor:
    """The log rms of float32 gradients [..., D] as in `measure`; NaN where any is not finite."""
    norms = grads.new_empty(grads.shape[:-1])
    if norms.numel():
        with launching(grads.device):
            grid, settings = tiling(norms.numel(), grads.shape[-1])
            norm_kernel[grid](
                *(grads.detach().contiguous(), norms, norms.numel(), grads.shape[-1]), **settings
            )
    return norms
