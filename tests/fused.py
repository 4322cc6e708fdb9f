"""Where the fused kernels run in tests: on a GPU, or else in Triton's interpreter."""

from typing import Any

import pytest
import torch

from haltwise._kernels import fused

__all__ = ["DEVICE", "fused_device"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _call(function: Any, *arguments: Any, **settings: Any) -> Any:
    """Call a function from a kernel; the language is made interpreted only if it is not yet."""
    from triton.language import core
    from triton.runtime import interpreter

    language = [function.fn.__globals__.get(name) for name in ("tl", "core")]
    if any(core.is_builtin(module.arange) for module in language if module is not None):
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*arguments, **settings)


@pytest.fixture
def fused_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors go through the fused kernels."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setenv("HALTWISE_KERNEL", "triton")
    assert DEVICE.type == "cuda" or fused.is_interpreted()  # conftest.py sees to it
    # Triton itself looks through the language at each call, which takes half of the time.
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", _call)
    return DEVICE
