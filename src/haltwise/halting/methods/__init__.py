"""Halting methods, one file each: law, objective, stop rule and what is calibrated.

A new method is one file with a frozen dataclass and `METHODS`, from its name to the class.
"""

import sys
from collections.abc import Mapping

from haltwise._core import discovery
from haltwise.halting.methods.base import HaltingExamples, HaltingMethod
from haltwise.halting.methods.graves import Graves
from haltwise.halting.methods.none import NoHalting
from haltwise.halting.methods.softmax import Softmax
from haltwise.halting.methods.stick_breaking import StickBreaking

__all__ = [
    "Graves",
    "HaltingExamples",
    "HaltingMethod",
    "NoHalting",
    "Softmax",
    "StickBreaking",
    "halting_methods",
]


def halting_methods() -> Mapping[str, type[HaltingMethod]]:
    """Every named method: what settings and cards name and generic tests walk."""
    return discovery.collect(sys.modules[__name__], "METHODS")
