"""When computation should stop: priors, posteriors, the halting head and stop rules."""

from haltwise.halting.halter import AFTER, BEFORE, Halter, HaltingOutput
from haltwise.halting.posteriors import (
    GravesPosterior,
    Posterior,
    SoftmaxPosterior,
    StickBreakingPosterior,
)
from haltwise.halting.priors import HorizonPrior, TruncatedGeometric

__all__ = [
    "AFTER",
    "BEFORE",
    "GravesPosterior",
    "Halter",
    "HaltingOutput",
    "HorizonPrior",
    "Posterior",
    "SoftmaxPosterior",
    "StickBreakingPosterior",
    "TruncatedGeometric",
]
