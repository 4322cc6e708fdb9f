"""A whole training run in one call."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from haltwise.tasks import TaskFamily, whereabouts
from haltwise.training.config import TrainingConfig
from haltwise.training.trainer import Trainer

__all__ = ["train"]


def train(
    family: str | TaskFamily,
    directory: str | Path,
    *,
    preset: str = "act",
    device: torch.device | str = "cpu",
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
        settings: Of `TrainingConfig` and `ModelConfig`, for instance `price=0.1`.

    Returns:
        The run directory, which `haltwise.load`, `haltwise.solve` and all others take.

    Raises:
        InputError: A setting is impossible, or the directory holds a run already.
    """
    if isinstance(family, TaskFamily):
        settings = {"family_settings": asdict(family), **settings}
        family = whereabouts(family)
    config = TrainingConfig.from_preset(preset, family, **settings)
    for _ in Trainer(config, Path(directory), device=device, command=f"train({family!r})").run():
        pass
    return Path(directory)
