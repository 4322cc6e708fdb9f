"""When computation should stop: priors, posteriors, the halting head and stop rules."""

from haltwise.halting.head import AFTER, BEFORE, HaltingHead, HaltingOutput
from haltwise.halting.posteriors import SoftmaxPosterior
from haltwise.halting.priors import HorizonPrior, TruncatedGeometric

__all__ = [
    "AFTER",
    "BEFORE",
    "HaltingHead",
    "HaltingOutput",
    "HorizonPrior",
    "SoftmaxPosterior",
    "TruncatedGeometric",
]
