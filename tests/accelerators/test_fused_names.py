"""Names that Triton's launcher has for itself, which the interpreter does not mind."""

import importlib

import pytest

ROOMS = (
    *(f"_kernels.fused.{name}" for name in ("backward", "cell", "step", "sums")),
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
