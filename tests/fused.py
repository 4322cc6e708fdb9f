"""Where the fused kernels run in tests: on a GPU, or else in Triton's interpreter."""

import os
from typing import Any

import pytest
import torch

__all__ = ["DEVICE", "fused_device"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined


@pytest.fixture
def fused_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors go through the fused kernels."""
    pytest.importorskip("triton")
    monkeypatch.setenv("HALTWISE_KERNEL", "triton")
    if DEVICE.type == "cpu":
        from triton.runtime import interpreter

        patch = interpreter._patch_lang_tensor

        def patched(tensor: Any, scope: Any) -> None:
            # NumPy 2.4 makes no index of an array of one number, which bounds of loops are.
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
    return DEVICE
