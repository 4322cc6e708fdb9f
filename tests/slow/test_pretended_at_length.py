"""Longer work on the accelerator that is pretended; see `accelerators/test_pretended.py`."""

from pathlib import Path

import on_accelerator
import pytest


@on_accelerator.needs_one
@pytest.mark.parametrize("name", on_accelerator.SLOW_CASES)
def test_an_accelerator_does_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    on_accelerator.compare(name, tmp_path)
