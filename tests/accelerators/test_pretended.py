"""Device follows the data, wherever that lies: seen on an accelerator that is pretended."""

from pathlib import Path

import forked
import on_accelerator
import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no device made in Python",
)


@pytest.mark.parametrize("name", on_accelerator.CASES)
def test_an_accelerator_does_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    # A process that has such a device is never rid of it.
    done = forked.run(name, cwd=tmp_path, folder=tmp_path, work=on_accelerator.perform)
    assert done.returncode == 0, done.stderr[-3000:]
