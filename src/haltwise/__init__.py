"""Stop any iterative process when its next step is not worth its price."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from haltwise._core.errors import DataWarning, FitWarning, GradientWarning, InputError
from haltwise._core.version import __version__

if TYPE_CHECKING:  # imported when they are used: `haltwise --version` needs no PyTorch
    from haltwise.curves.curves import Curves
    from haltwise.curves.model import CurveModel
    from haltwise.evaluation.recommend import Recommendation, recommend
    from haltwise.interfaces.certify import certify
    from haltwise.interfaces.groups import Groups, from_groups
    from haltwise.interfaces.load import load
    from haltwise.interfaces.monitor import HaltingMonitor
    from haltwise.interfaces.prices import price_for_budget, price_for_time, price_for_tolerance
    from haltwise.interfaces.run import run
    from haltwise.interfaces.run_monitor import RunMonitor
    from haltwise.interfaces.scipy import minimize
    from haltwise.interfaces.solve import Solution, solve
    from haltwise.interfaces.torch_optim import LearnedOptimizer
    from haltwise.models.halting_model import HaltingModel
    from haltwise.models.loading import load_halting
    from haltwise.models.optimizer_model import OptimizerModel
    from haltwise.rollout.early_exit import Execution, Outcome
    from haltwise.tasks.bounds import interval, positive
    from haltwise.tasks.function import FunctionBatch
    from haltwise.tasks.generalized_linear import generalized_linear

__all__ = [
    "CurveModel",
    "Curves",
    "DataWarning",
    "Execution",
    "FitWarning",
    "FunctionBatch",
    "GradientWarning",
    "Groups",
    "HaltingModel",
    "HaltingMonitor",
    "InputError",
    "LearnedOptimizer",
    "OptimizerModel",
    "Outcome",
    "Recommendation",
    "RunMonitor",
    "Solution",
    "__version__",
    "certify",
    "from_groups",
    "generalized_linear",
    "interval",
    "load",
    "load_halting",
    "minimize",
    "positive",
    "price_for_budget",
    "price_for_time",
    "price_for_tolerance",
    "recommend",
    "run",
    "solve",
]

_PLACES = {
    "CurveModel": "curves.model",
    "Curves": "curves.curves",
    "Execution": "rollout.early_exit",
    "FunctionBatch": "tasks.function",
    "Groups": "interfaces.groups",
    "HaltingModel": "models.halting_model",
    "HaltingMonitor": "interfaces.monitor",
    "LearnedOptimizer": "interfaces.torch_optim",
    "OptimizerModel": "models.optimizer_model",
    "Outcome": "rollout.early_exit",
    "Recommendation": "evaluation.recommend",
    "RunMonitor": "interfaces.run_monitor",
    "Solution": "interfaces.solve",
    "certify": "interfaces.certify",
    "from_groups": "interfaces.groups",
    "generalized_linear": "tasks.generalized_linear",
    "interval": "tasks.bounds",
    "load": "interfaces.load",
    "load_halting": "models.loading",
    "minimize": "interfaces.scipy",
    "positive": "tasks.bounds",
    "price_for_budget": "interfaces.prices",
    "price_for_time": "interfaces.prices",
    "price_for_tolerance": "interfaces.prices",
    "recommend": "evaluation.recommend",
    "run": "interfaces.run",
    "solve": "interfaces.solve",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"haltwise.{_PLACES[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"haltwise.{name}") is not None:
        return importlib.import_module(f"haltwise.{name}")  # as in haltwise.training.train
    raise AttributeError(f"module 'haltwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
