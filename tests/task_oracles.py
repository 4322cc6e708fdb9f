"""What the oracles of several families share."""

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.testing import assert_close

from haltwise.tasks import TaskBatch

B = 5
DOUBLE = torch.float64


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def tensors(batch: TaskBatch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


def assert_law(values: Tensor, law: Any) -> None:
    """Kolmogorov-Smirnov with a fixed seed: fails for any law that is visibly another."""
    assert scipy.stats.kstest(values.flatten().numpy(), law.cdf).pvalue > 1e-3


def every_subset(
    module: ModuleType, num_items: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Make step t of every problem draw the t-th of all subsets; return how many there are."""
    subsets = torch.tensor(list(itertools.combinations(range(num_items), size)))

    def draw(seed: Tensor, step: int, items: int, chosen: int) -> Tensor:
        assert (items, chosen) == (num_items, size)
        return subsets[step].expand(len(seed), -1)

    monkeypatch.setattr(module, "random_subsets", draw)
    return len(subsets)


def assert_unbiased(batch: TaskBatch, loss: Callable[[Tensor], Tensor], num_steps: int) -> None:
    """What is seen, averaged over `num_steps` steps, is `loss` and its gradient."""
    params = (batch.start + randn(*batch.start.shape, seed=3)).requires_grad_()
    expected = loss(params)
    (grad,) = torch.autograd.grad(expected.sum(), params)
    seen = [batch.observe(params.detach(), step) for step in range(num_steps)]
    assert_close(torch.stack([one.loss for one in seen]).mean(0), expected, rtol=1e-12, atol=0)
    assert_close(torch.stack([one.grad for one in seen]).mean(0), grad, rtol=1e-11, atol=1e-12)
