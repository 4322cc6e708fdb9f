"""Meta-training of learned optimizers."""

from haltwise.training.config import PRESETS, TrainingConfig
from haltwise.training.trainer import Progress, Trainer

__all__ = ["PRESETS", "Progress", "Trainer", "TrainingConfig"]
