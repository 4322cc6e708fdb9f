"""From recorded runs of somebody's loop to a monitor that stops it."""

from pathlib import Path
from typing import Any

import torch

from haltwise.recordings.runs import RecordedRuns
from haltwise.training.config import TrainingConfig
from haltwise.training.trainer import Trainer

__all__ = ["monitor_config", "train_monitor"]

# Some hundreds of runs are all there is: a smaller head, fewer steps.
_SETTINGS: dict[str, Any] = {
    "rule": "foreign",
    "posterior": "stick-breaking",
    "head_width": 32,
    "head_memory": 16,
    "price_range": 3.0,
    "num_meta_steps": 0,
    "head_steps": 1000,
    "head_batch_size": 128,
    "validate_every": 100,
}


def monitor_config(
    runs: str | Path, *, price: float, horizon: int | None = None, **settings: Any
) -> TrainingConfig:
    """What `train_monitor` trains.

    Args:
        runs: The directory of the recordings.
        price: c, what a round must gain, in units of the score.
        horizon: T, rounds after the first; the shortest run's if None.
        settings: Others of `TrainingConfig` and `ModelConfig`.

    Raises:
        InputError: There are no such runs, or a setting is impossible.
    """
    recorded = RecordedRuns.load(runs, horizon)
    return TrainingConfig.from_preset(
        "act",
        "recorded runs",
        runs=str(Path(runs).resolve()),
        price=price,
        horizon=recorded.recording.num_steps,
        **{**_SETTINGS, **settings},
    )


def train_monitor(
    runs: str | Path,
    directory: str | Path,
    *,
    price: float,
    horizon: int | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Path:
    """Learn when to stop a loop from recorded runs of it; for `haltwise.HaltingMonitor`.

    Of the runs 65 % teach the head, 10 % choose its weights and 25 % its threshold.

    Args:
        runs: The directory in which `HaltingMonitor.recording` wrote them.
        directory: The run directory, created if missing.
        price: See `monitor_config`, as all but the device.
        horizon: T.
        device: Where to train.
        settings: For instance `keeps_best=True`, for a loop that goes back to its best state.

    Returns:
        The run directory, to give to `HaltingMonitor`.

    Raises:
        InputError: Too few runs, or a setting or a file is no good.

    Warns:
        CalibrationWarning: Few runs, or some that were left out.
    """
    config = monitor_config(runs, price=price, horizon=horizon, **settings)
    command = f"train_monitor({str(runs)!r}, price={price:g})"
    for _ in Trainer(config, Path(directory), device=device, command=command).run():
        pass
    return Path(directory)
