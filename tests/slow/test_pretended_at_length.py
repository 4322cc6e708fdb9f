"""Longer work on the accelerator that is pretended; see `accelerators/test_pretended.py`."""

from pathlib import Path

import forked
import on_accelerator
import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no device made in Python",
)


@pytest.mark.parametrize("name", on_accelerator.SLOW_CASES)
def test_an_accelerator_does_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    done = forked.run(name, cwd=tmp_path, folder=tmp_path, work=on_accelerator.perform)
    assert done.returncode == 0, done.stderr[-3000:]
