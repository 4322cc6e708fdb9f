"""Learned optimizers for PyTorch that know when to stop."""

from haltwise import torch_optim
from haltwise._errors import InputError
from haltwise._version import __version__
from haltwise.execution import Outcome
from haltwise.minimization import minimize
from haltwise.monitor import HaltingMonitor
from haltwise.optimizer import LearnedOptimizer
from haltwise.pretrained import load
from haltwise.solving import Solution, solve
from haltwise.tasks.function import FunctionBatch

__all__ = [
    "FunctionBatch",
    "HaltingMonitor",
    "InputError",
    "LearnedOptimizer",
    "Outcome",
    "Solution",
    "__version__",
    "load",
    "minimize",
    "solve",
    "torch_optim",
]
