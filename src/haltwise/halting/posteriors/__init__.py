"""Posteriors over the halting step behind one interface, one file each."""

from haltwise.halting.posteriors.base import Posterior
from haltwise.halting.posteriors.graves import GravesPosterior
from haltwise.halting.posteriors.softmax import SoftmaxPosterior
from haltwise.halting.posteriors.stick_breaking import StickBreakingPosterior

__all__ = ["GravesPosterior", "Posterior", "SoftmaxPosterior", "StickBreakingPosterior"]
