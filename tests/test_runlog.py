"""The log of a run."""

import math
from pathlib import Path

import pytest

from haltwise.runlog import RunLog, read_log


def test_records_come_back_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write({"step": 1, "loss": 2.5})
    log.write({"step": 2, "loss": math.nan})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_log(tmp_path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, tensorboard=True)
    log.write({"step": 7, "loss": 2.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 2.5)]
