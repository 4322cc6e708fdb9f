"""What the tests of the compiled kernels share: how near is near, and where they can run."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from haltwise import _kernels
from haltwise._kernels import native

__all__ = ["DTYPES", "assert_close", "instruction_set", "needs_library"]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = tuple(TOLERANCE)

needs_library = pytest.mark.skipif(
    not _kernels.available(), reason=f"runs {_kernels.implementation()}"
)


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels run with each of the instruction sets, as far as the machine has them."""
    name, library = str(request.param), native.library()
    isa = native.INSTRUCTION_SETS.index(name)
    if isa > library.isa:
        pytest.skip(f"this machine has no {name}")
    monkeypatch.setattr(native, "_load", lambda: library._replace(isa=isa))
    return name


def assert_close(
    found: Sequence[Tensor], expected: Sequence[Tensor], *, in_float64: bool = False
) -> None:
    """Of the same shapes and dtypes, but where expected `in_float64`; near in the norm of each."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert other.dtype == (torch.float64 if in_float64 else one.dtype)
        error = (one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30)
        assert error <= TOLERANCE[one.dtype], f"relative error {error:.1e}"
