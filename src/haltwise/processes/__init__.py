"""Processes: anything that advances a batch of items step by step and shows observations."""

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
]
