"""Recorded runs are read as what they are: nothing is lost, shifted, renamed or made up."""

import math
from pathlib import Path

import pytest

from haltwise import HaltingMonitor
from haltwise.curves import Curves, read


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("scored", [False, True])
def test_a_recorded_loop_that_became_nan_diverged(
    tmp_path: Path, direction: str, scored: bool
) -> None:
    monitor = HaltingMonitor.recording(tmp_path, direction=direction)
    for value in (3.0, 2.0, 1.5, math.nan, math.nan):
        monitor.update(value, **({"score": value} if scored else {}))
    monitor.close()
    curves = read(tmp_path)
    assert curves.metric == ("score" if scored else "loss")
    worst = math.inf if direction == "min" else -math.inf
    assert curves[0].columns[curves.metric].tolist() == [3, 2, 1.5, worst, worst]


def test_runs_are_counted_from_the_end_as_in_a_list() -> None:
    curves = Curves.from_matrix([[3.0, 2.0, 1.0], [4.0, 3.0, math.nan]], target=[1.0, 3.0])
    for run in (-1, -2):
        found, expected = curves[run], list(curves)[run]
        assert found.loss.tolist() == expected.loss.tolist()
        assert found.target == expected.target
    for beyond in (2, -3):
        with pytest.raises(IndexError):
            curves[beyond]
