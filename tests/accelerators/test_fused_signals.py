"""Triton's kernels of signals and norms against PyTorch's operations in float64."""

import pytest
import torch
from draws import seeded
from fused import DEVICE, fused_device
from torch import Tensor

from haltwise._core.tensors import log_rms
from haltwise._kernels import fused
from haltwise.processes.signals import combine_products, log_norm, measure_signals, sum_products

__all__ = ["fused_device"]
pytestmark = pytest.mark.usefixtures("fused_device")

SPECIAL = (0.0, 1e-38, 1e-20, 1e19, 3e38, torch.inf, -torch.inf, torch.nan)
NAMES = ("grad", "update", "last_grad", "last_update")


def drawn(*shape: int, seed: int, scale: Tensor | float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=seeded(seed))).to(DEVICE)


def spoiled(value: Tensor, seed: int) -> Tensor:
    """Rows of zeros, and rows of which an entry is special."""
    value = value.clone()
    for place, number in enumerate(SPECIAL):
        value[5 * place + seed :: 47, ..., 0] = number
        if number == 0:
            value[5 * place + seed :: 47] = 0
    return value


def both(step: int | Tensor, loss: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Signals by the kernel, and in float64."""
    grad, update = rows["grad"], rows["update"]
    memory = {"grad": rows["last_grad"], "update": rows["last_update"]}
    found, after = measure_signals(step, loss, grad, update, memory)
    assert after["grad"] is grad
    assert after["update"] is update
    wide = {name: value.double() for name, value in memory.items()}
    products = sum_products(grad.double(), update.double(), wide)
    return found, combine_products(step, loss.double(), products, grad.shape[-1]).float()


@pytest.mark.parametrize("dim", [1, 2, 10, 700])
@pytest.mark.parametrize("many", [False, True])
def test_signals(dim: int, many: bool) -> None:
    shape = (60, 3) if many else (60,)  # of which rows that are as drawn, and special ones
    loss = torch.randn(shape, generator=seeded()).to(DEVICE)
    scale = torch.exp(10 * torch.randn(*shape, 1, generator=seeded(9)))
    rows = {name: drawn(*shape, dim, seed=i, scale=scale) for i, name in enumerate(NAMES)}
    rows["last_update"][:30] = -0.3 * rows["last_grad"][:30]  # otherwise curvature is below 0
    rows["grad"][:30] *= 0.7
    rows = {name: spoiled(value, i) for i, (name, value) in enumerate(rows.items())}
    steps: list[int | Tensor]
    steps = [torch.tensor([0, 1, 9]).to(DEVICE)] if many else [0, 7, torch.tensor(3).to(DEVICE)]
    for step in steps[-1:] if dim == 700 else steps:  # many coordinates take long
        found, expected = both(step, loss, rows)
        assert torch.equal(found.isnan(), expected.isnan())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dim", [1, 10, 3000])
def test_norms(dim: int) -> None:
    scale = torch.exp(10 * torch.randn(100, 1, generator=seeded(9)))
    grad = spoiled(drawn(100, dim, seed=0, scale=scale), 0)
    expected = log_rms(grad.double()).masked_fill(~grad.isfinite().all(1), torch.nan)
    torch.testing.assert_close(
        log_norm(grad).double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True
    )
    assert (log_norm(torch.zeros_like(grad)) <= -103).all()


def test_what_does_not_go_through_the_kernels() -> None:
    value = torch.ones(3, 4, device=DEVICE)
    assert fused.serves_problems(value, value)
    assert not fused.serves_problems(value, value.double())
    assert not fused.serves_problems(value.new_ones(1, fused.MAX_COORDINATES + 1))
    assert log_norm(value.double()).dtype == torch.float64
