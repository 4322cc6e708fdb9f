"""The log of a run."""

import math
from pathlib import Path

import pytest

from haltwise.training import Trainer, TrainingSettings
from haltwise.training.run.log import RunLog, read_log


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


def test_tensorboard_gets_how_halting_steps_are_spread(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TrainingSettings.from_preset(
        "act",
        "regression-2d",
        {
            "joint": {"num_steps": 4, "batch_size": 8, "warmup": 0.0},
            "halting": {"num_steps": 4, "num_recorded": 64, "batch_size": 8},
            "validation": {"every": 4, "num_problems": 64, "num_calibration": 64},
        },
    )
    trainer = Trainer(settings, tmp_path / "run", tensorboard=True)
    *_, last = trainer.run()
    folder = str(tmp_path / "run" / "tensorboard")
    events = EventAccumulator(folder, size_guidance={"histograms": 0}).Reload()
    histograms = events.Histograms("halting_step")
    assert [event.step for event in histograms] == [4, 8]
    spread = histograms[-1].histogram_value
    assert spread.num == 64
    assert spread.sum / 64 == pytest.approx(last.mean_halting_step)
    assert 1 <= spread.min <= spread.max <= settings.horizon
