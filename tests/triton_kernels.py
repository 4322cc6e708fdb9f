"""Triton's kernels in tests: on a GPU where there is one, and interpreted on the CPU elsewhere."""

import importlib.util
import os
from typing import Any

import pytest
import torch

__all__ = ["DEVICE", "needs_triton", "triton_kernels"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture
def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send float32 tensors of `DEVICE` through Triton's kernels."""
    monkeypatch.setenv("HALTWISE_KERNEL", "triton")
    if DEVICE == "cpu":
        from triton.runtime import interpreter

        patch = interpreter._patch_lang_tensor

        def patched(tensor: Any, scope: Any) -> None:
            # NumPy 2.4 makes no index of an array of one number.
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
