"""Halting of a process: features, halter, methods, posteriors, objectives, the session."""

from haltwise.halting.halter import Halter, HalterSettings
from haltwise.halting.methods import (
    Graves,
    HaltingExamples,
    HaltingMethod,
    NoHalting,
    Softmax,
    StickBreaking,
    halting_methods,
)
from haltwise.halting.posteriors import (
    GravesPosterior,
    Posterior,
    SoftmaxPosterior,
    StickBreakingPosterior,
)
from haltwise.halting.priors import HorizonPrior
from haltwise.halting.session import Decision, HaltingSession

__all__ = [
    "Decision",
    "Graves",
    "GravesPosterior",
    "Halter",
    "HalterSettings",
    "HaltingExamples",
    "HaltingMethod",
    "HaltingSession",
    "HorizonPrior",
    "NoHalting",
    "Posterior",
    "Softmax",
    "SoftmaxPosterior",
    "StickBreaking",
    "StickBreakingPosterior",
    "halting_methods",
]
