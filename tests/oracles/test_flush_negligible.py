"""Small helpers for tensors."""

import pytest
import torch

from haltwise._core.tensors import flush_negligible


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_what_no_sum_can_feel_is_dropped(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    size = 10 ** torch.empty(50, 40, 3, dtype=dtype).uniform_(-44, 0, generator=generator)
    value = size * torch.randn(size.shape, generator=generator, dtype=dtype)
    value[..., 1] *= 1e-20  # every column is judged by itself
    kept = flush_negligible(value, 0, 1)
    assert ((kept == value) | (kept == 0)).all()
    assert (kept == 0).any()
    lost = (kept - value).double().abs().sum((0, 1))
    assert (lost <= 1e-10 * kept.double().abs().amax((0, 1))).all()
    assert (kept[kept != 0].abs() >= torch.finfo(dtype).tiny).all()


def test_nothing_and_nonfinite_numbers_pass() -> None:
    assert flush_negligible(torch.zeros(0, 3), 0).shape == (0, 3)
    assert torch.equal(flush_negligible(torch.zeros(4, 2), 0), torch.zeros(4, 2))
    spoiled = torch.tensor([[1.0, 2.0], [float("nan"), 1e-30]])
    kept = flush_negligible(spoiled, 0)
    assert kept[1, 0].isnan()
    assert kept[0].tolist() == [1.0, 2.0]
    assert kept[1, 1] == 0
