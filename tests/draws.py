"""Random numbers for tests: float64, and the same whenever they are asked for."""

import torch
from torch import Tensor

__all__ = ["DOUBLE", "randn", "seeded"]

DOUBLE = torch.float64


def seeded(seed: int = 1) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Standard normal numbers, drawn in float64 and rounded to `dtype`."""
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE).to(dtype)
