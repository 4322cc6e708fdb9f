"""Runs that diverge are rolled back alike, wherever they are interrupted."""

from pathlib import Path

import pytest
from tiny_runs import assert_same_run, diverging, finish, sabotage

from haltwise.training import Trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    directory = tmp_path_factory.mktemp("rollbacks") / "whole"
    finish(diverging(directory, 7, times=2))
    return directory


@pytest.mark.parametrize("cut", range(1, 13))
@pytest.mark.parametrize("saves", [True, False])
def test_rollbacks_are_the_same_after_an_interruption(
    cut: int, saves: bool, whole: Path, tmp_path: Path
) -> None:
    broken = diverging(tmp_path / "broken", 7, times=2)
    for number, _ in enumerate(broken.run(), start=1):
        if number == cut:
            break
    if saves:
        broken.save()
    finish(sabotage(Trainer.resume(tmp_path / "broken"), 7, times=2))
    assert_same_run(whole, tmp_path / "broken")
