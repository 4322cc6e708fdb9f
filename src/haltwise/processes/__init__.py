"""Processes: anything that advances a batch of items step by step and shows observations."""

import sys
from collections.abc import Mapping

from haltwise._core import discovery as _discovery
from haltwise.processes.base import Process, ProcessFamily, ProcessStep, StepObservation
from haltwise.processes.optimization import OptimizationProcess
from haltwise.processes.trajectory import Trajectory

__all__ = [
    "OptimizationProcess",
    "Process",
    "ProcessFamily",
    "ProcessStep",
    "StepObservation",
    "Trajectory",
    "process_families",
]


def process_families() -> Mapping[str, ProcessFamily]:
    """List every named family of processes: the tables `PROCESS_FAMILIES` of the modules here."""
    return _discovery.collect(sys.modules[__name__], "PROCESS_FAMILIES")
