"""Planning in finite decision processes: the known answers that learned stops are set beside."""

from haltwise.planning.mdp import (
    FiniteMDP,
    PlannedPolicy,
    expectation_maximization,
    value_iteration,
)
from haltwise.planning.stopping import (
    OptimalStopping,
    StoppingCosts,
    as_decision_process,
    optimal_stopping,
    stopping_costs,
)

__all__ = [
    "FiniteMDP",
    "OptimalStopping",
    "PlannedPolicy",
    "StoppingCosts",
    "as_decision_process",
    "expectation_maximization",
    "optimal_stopping",
    "stopping_costs",
    "value_iteration",
]
