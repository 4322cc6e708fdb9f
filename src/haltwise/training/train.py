"""A whole training run in one call."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from haltwise._core.plugins import whereabouts
from haltwise.tasks import TaskFamily
from haltwise.training.config import TrainingConfig
from haltwise.training.trainer import Trainer

__all__ = ["train"]


def train(
    family: str | TaskFamily,
    directory: str | Path,
    *,
    preset: str = "act",
    device: torch.device | str = "cpu",
    data_dir: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Meta-train an optimizer; what `haltwise train` does, without a display.

    Args:
        family: A name, PATH.py:NAME, or a family of your own whose class stands at the top of a
            file, which is executed again: what it is to do only as a script belongs under
            `if __name__ == "__main__":`.
        directory: Of the run, created if missing.
        preset: A name in `PRESETS`.
        device: Where to compute.
        data_dir: See `haltwise.tasks.family`; by default that of a family of your own.
        settings: Of `TrainingConfig` and `ModelConfig`, for instance `price=0.1`.

    Returns:
        The run directory, which `haltwise.load`, `haltwise.solve` and all others take.

    Raises:
        InputError: A setting is impossible, or the directory holds a run already.
    """
    if isinstance(family, TaskFamily):
        settings = {"family_settings": asdict(family), **settings}
        data_dir = data_dir or family.data_dir
        family = whereabouts(family)
    config = TrainingConfig.from_preset(preset, family, **settings)
    trainer = Trainer(
        config, Path(directory), device=device, command=f"train({family!r})", data_dir=data_dir
    )
    for _ in trainer.run():
        pass
    return Path(directory)
