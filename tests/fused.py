"""Where the fused kernels run in tests: on a GPU, or else in Triton's interpreter."""

import pytest
import torch

from haltwise._kernels import fused

__all__ = ["DEVICE", "fused_device"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def fused_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors go through the fused kernels."""
    pytest.importorskip("triton")
    monkeypatch.setenv("HALTWISE_KERNEL", "triton")
    assert DEVICE.type == "cuda" or fused.is_interpreted()  # conftest.py sees to it
    return DEVICE
