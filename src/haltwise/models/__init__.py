"""Models that are trained and loaded: halting models, optimizer models and their cards."""

from haltwise.models.card import Card, Choice
from haltwise.models.files import certified, fingerprint, read_model, save_model
from haltwise.models.halting_model import HaltingModel
from haltwise.models.loading import load, load_halting, names
from haltwise.models.optimizer_model import OptimizerModel

__all__ = [
    "Card",
    "Choice",
    "HaltingModel",
    "OptimizerModel",
    "certified",
    "fingerprint",
    "load",
    "load_halting",
    "names",
    "read_model",
    "save_model",
]
