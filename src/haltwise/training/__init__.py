"""Meta-training of learned optimizers."""

from haltwise.training.config import PRESETS, TrainingConfig
from haltwise.training.monitor import monitor_config, train_monitor
from haltwise.training.objective import POSTERIORS
from haltwise.training.train import train
from haltwise.training.trainer import Progress, Trainer
from haltwise._core.workers import Workers

__all__ = [
    "POSTERIORS",
    "PRESETS",
    "Progress",
    "Trainer",
    "TrainingConfig",
    "Workers",
    "monitor_config",
    "train",
    "train_monitor",
]
