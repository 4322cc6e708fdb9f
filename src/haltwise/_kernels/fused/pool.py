"""Mean and inverse root mean square of gradients, in one launch."""

import torch
import triton
from torch import Tensor

from haltwise._core.tensors import log_rms
from haltwise._kernels.fused import launching
from haltwise._kernels.fused.backward import pool_kernel

__all__ = ["pool"]

_LARGEST = 2**14  # coordinates of a problem that one program reads


def pool(grads: Tensor) -> Tensor:
    """Statistics [..., 2] of float32 gradients [..., D]."""
    dim = grads.shape[-1]
    if dim > _LARGEST:
        inverse = torch.exp(-log_rms(grads).clamp_min(-80))
        return torch.stack((grads.mean(-1), inverse), -1)
    grads = grads.contiguous()
    pooled = grads.new_empty(*grads.shape[:-1], 2)
    num_problems = pooled.numel() // 2
    width = int(triton.next_power_of_2(dim))
    at_once = max(1, 512 // width)
    if num_problems:
        with launching(grads.device):
            pool_kernel[(triton.cdiv(num_problems, at_once),)](
                *(grads, pooled, num_problems, dim),
                PROBLEMS=at_once,
                COORDINATES=width,
                num_warps=max(1, min(16, at_once * width // 256)),
            )
    return pooled
