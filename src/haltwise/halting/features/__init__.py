"""Halting features, one file a kind: what a halter reads of a process at a price.

A new kind is one file that defines `FEATURES`, from a name to a `FeatureSet`.
"""

import sys
from collections.abc import Mapping

from haltwise._core import discovery
from haltwise.halting.features.base import FeatureSet
from haltwise.halting.features.optimization import OptimizationFeatures

__all__ = ["FeatureSet", "OptimizationFeatures", "feature_sets"]


def feature_sets() -> Mapping[str, FeatureSet]:
    """Every named kind of features."""
    return discovery.collect(sys.modules[__name__], "FEATURES")
