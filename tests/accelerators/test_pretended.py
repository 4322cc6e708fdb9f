"""Device follows the data, wherever that lies: seen on an accelerator that is pretended."""

from pathlib import Path

import on_accelerator
import pytest


@on_accelerator.needs_one
@pytest.mark.parametrize("name", on_accelerator.CASES)
def test_an_accelerator_does_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    on_accelerator.compare(name, tmp_path)
