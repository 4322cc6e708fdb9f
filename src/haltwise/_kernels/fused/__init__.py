"""Fused kernels for NVIDIA GPUs, written in Triton.

Triton is optional and imported by the modules of this room only, which nothing imports before
`serves` has said yes. With `TRITON_INTERPRET=1` its interpreter runs the same kernels on a CPU,
slowly: `HALTWISE_KERNEL=triton` then sends CPU tensors through them, too.
"""

import contextlib
import functools
import importlib.util
import os
import re
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from haltwise._core.kernel_setting import kernel_setting
from haltwise._kernels.operands import is_dense, is_watched

__all__ = [
    "MAX_COORDINATES",
    "MAX_INPUTS",
    "MAX_LAYERS",
    "MAX_SIZE",
    "implementation",
    "is_interpreted",
    "launching",
    "serves",
    "serves_problems",
]

MAX_SIZE, MAX_LAYERS = 64, 4
MAX_COORDINATES = 2**14
"""D, coordinates of a problem that one program reads."""
MAX_INPUTS = 128
"""I, inputs of a sequence that is no optimizer's."""

_OLDEST_TRITON = 3, 6  # that of pyproject.toml


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def serves(device: torch.device, dtype: torch.dtype, size: int = 0, num_layers: int = 0) -> bool:
    """Whether such tensors go through the kernels now, with H = `size` units in L layers."""
    return (
        dtype is torch.float32
        and size <= MAX_SIZE
        and num_layers <= MAX_LAYERS
        and device.type in ("cuda", "cpu")
        and not is_watched()
        and _missing(device) is None
    )


def serves_problems(*tensors: Tensor) -> bool:
    """Whether these, each [..., D], go through the kernels that read a problem whole."""
    device = tensors[0].device
    return serves(device, torch.float32) and all(
        is_dense(tensor)
        and tensor.device == device
        and tensor.dtype is torch.float32
        and tensor.shape[-1] <= MAX_COORDINATES
        for tensor in tensors
    )


def launching(device: torch.device) -> AbstractContextManager[object]:
    """Launch kernels on a device, which need not be the current one."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    if is_interpreted():  # exponentials may overflow, as on a GPU
        return np.errstate(over="ignore", invalid="ignore")
    return contextlib.nullcontext()


def implementation(device: torch.device) -> str:
    """What runs on a device, in words, or why the kernels do not."""
    missing = _missing(device)
    return f"PyTorch's operations ({missing})" if missing else "fused kernels (Triton)"


def _missing(device: torch.device) -> str | None:
    """Why the kernels do not run on a device."""
    setting = kernel_setting()
    if setting == "plain":
        return "HALTWISE_KERNEL=plain"
    if device.type == "cpu":
        wanted = setting == "triton" and is_interpreted()
        return _no_triton() if wanted else "the kernels are for NVIDIA GPUs"
    return _no_triton() or _no_gpu(device.index)


@functools.cache
def _no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    import triton

    numbers = [int(digits) for digits in re.findall(r"\d+", triton.__version__)[:2]]
    if numbers < [*_OLDEST_TRITON]:
        major, minor = _OLDEST_TRITON
        return (
            f"Triton {triton.__version__} is too old, {major}.{minor} is needed: take a newer "
            "PyTorch, which brings its own"
        )
    return None


@functools.cache
def _no_gpu(index: int | None) -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is not built for NVIDIA GPUs"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"a GPU of compute capability {major}.{minor} has no tf32 units; 8.0 is needed"
    return None
