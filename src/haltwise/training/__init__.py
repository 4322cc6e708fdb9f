"""Training of halting models and of the update rules beside them."""

from haltwise.training.gradients import GradientEstimator, Pathwise, estimators
from haltwise.training.presets import PRESETS
from haltwise.training.settings import TrainingSettings
from haltwise.training.train import monitor_settings, train, train_monitor, train_stop
from haltwise.training.trainer import Progress, Trainer

__all__ = [
    "PRESETS",
    "GradientEstimator",
    "Pathwise",
    "Progress",
    "Trainer",
    "TrainingSettings",
    "estimators",
    "monitor_settings",
    "train",
    "train_monitor",
    "train_stop",
]
