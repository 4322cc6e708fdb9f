"""Engines of `haltwise.solve`: one file each, which defines the table `ENGINES`."""

import sys
from collections.abc import Mapping

from haltwise._core import discovery as _discovery
from haltwise.engines.base import Engine, EngineObservation, Memory, Point, Proposal

__all__ = ["Engine", "EngineObservation", "Memory", "Point", "Proposal", "engines"]


def engines() -> Mapping[str, Engine]:
    """List every named engine: the table that `haltwise.solve` refers to and the tests walk."""
    return _discovery.collect(sys.modules[__name__], "ENGINES")
