"""What Triton takes: its version, and names that its launcher has for itself."""

import importlib
import tomllib
from pathlib import Path

import pytest
import torch
from fused import DEVICE, fused_device

from haltwise._kernels import fused

__all__ = ["fused_device"]

ROOMS = (
    *(f"_kernels.fused.{name}" for name in ("backward", "cell", "problems", "step")),
    *(f"interfaces.torch_optim.fused.{name}" for name in ("control", "lstm", "mlp", "tensors")),
)
TAKEN = {"params", "options", "specialization"}


@pytest.mark.parametrize("room", ROOMS)
def test_no_operand_of_a_kernel_is_called_like_the_launchers_own(room: str) -> None:
    pytest.importorskip("triton")
    module = importlib.import_module(f"haltwise.{room}")
    kernels = [value for value in vars(module).values() if hasattr(value, "arg_names")]
    assert kernels
    for kernel in kernels:
        assert not TAKEN & set(kernel.arg_names), kernel


@pytest.mark.parametrize("version", ["3.0.0", "3.5.1", "2.9"])
def test_an_older_triton_than_is_known_to_do_runs_no_kernels(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """PyTorch's builds before 2.10 bring one, which has not all that the kernels are written in."""
    triton = pytest.importorskip("triton")
    assert fused.serves(DEVICE, torch.float32)
    oldest = ".".join(map(str, fused._OLDEST_TRITON))
    monkeypatch.setattr(triton, "__version__", version)
    fused._no_triton.cache_clear()
    try:
        assert f"Triton {version} is too old, {oldest} is needed" in fused.implementation(DEVICE)
        assert not fused.serves(DEVICE, torch.float32)
    finally:
        fused._no_triton.cache_clear()


def test_the_oldest_triton_is_that_of_the_package() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    major, minor = fused._OLDEST_TRITON
    assert extras["triton"][0].startswith(f"triton>={major}.{minor};")
