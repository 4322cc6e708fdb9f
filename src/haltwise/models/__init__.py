"""Models that are trained and loaded: halting models, optimizer models and their cards."""

from haltwise.models.card import Card, Choice
from haltwise.models.files import certified, fingerprint, read_model, save_model, with_certificate
from haltwise.models.halting_model import HaltingModel
from haltwise.models.loading import card_of, load, load_halting, names, stop_names
from haltwise.models.optimizer_model import OptimizerModel

__all__ = [
    "Card",
    "Choice",
    "HaltingModel",
    "OptimizerModel",
    "card_of",
    "certified",
    "fingerprint",
    "load",
    "load_halting",
    "names",
    "read_model",
    "save_model",
    "stop_names",
    "with_certificate",
]
