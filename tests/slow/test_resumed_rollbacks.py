"""Runs that diverge are rolled back alike, wherever they are interrupted."""

from pathlib import Path

import pytest
from tiny_runs import assert_same_run, diverging, finish, sabotage

from haltwise.training import Trainer


@pytest.mark.parametrize("cut", range(1, 13))
@pytest.mark.parametrize("saves", [True, False])
def test_rollbacks_are_the_same_after_an_interruption(
    cut: int, saves: bool, tmp_path: Path
) -> None:
    finish(diverging(tmp_path / "whole", 7, times=2))

    broken = diverging(tmp_path / "broken", 7, times=2)
    for number, _ in enumerate(broken.run(), start=1):
        if number == cut:
            break
    if saves:
        broken.save()
    finish(sabotage(Trainer.resume(tmp_path / "broken"), 7, times=2))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
