"""Gradient estimators, one file each: how the meta-gradient of an objective is found.

A new estimator is one file with a frozen dataclass and `ESTIMATORS`, from its name to the class.
"""

import sys
from collections.abc import Mapping

from haltwise._core import discovery
from haltwise.training.gradients.base import BoundEstimator, Estimate, GradientEstimator
from haltwise.training.gradients.evolution import Evolution
from haltwise.training.gradients.pathwise import Pathwise

__all__ = [
    "BoundEstimator",
    "Estimate",
    "Evolution",
    "GradientEstimator",
    "Pathwise",
    "estimators",
]


def estimators() -> Mapping[str, type[GradientEstimator]]:
    """Every named gradient estimator."""
    return discovery.collect(sys.modules[__name__], "ESTIMATORS")
