"""Stop any iterative process when its next step is not worth its price."""

from haltwise._core.errors import InputError
from haltwise._core.version import __version__
from haltwise.interfaces.monitor import HaltingMonitor
from haltwise.interfaces.scipy import minimize
from haltwise.interfaces.solve import Solution, solve
from haltwise.interfaces.torch_optim import LearnedOptimizer
from haltwise.models.loading import load
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.early_exit import Outcome
from haltwise.tasks.function import FunctionBatch

__all__ = [
    "FunctionBatch",
    "HaltingMonitor",
    "InputError",
    "LearnedOptimizer",
    "OptimizerModel",
    "Outcome",
    "Solution",
    "__version__",
    "load",
    "minimize",
    "solve",
]
