"""Stop rules, one file each, and what their stops cost.

A new rule is one file with a frozen dataclass and `STOP_RULES`, from its name to the class.
"""

import sys
from collections.abc import Mapping

from haltwise._core import discovery
from haltwise.stop_rules.base import (
    AllOf,
    AnyOf,
    DecisionTime,
    LevelRule,
    StopRule,
    decide_all,
    decisions,
    decisions_and_reasons,
)
from haltwise.stop_rules.calibration import (
    BASELINES,
    Calibration,
    calibrate,
    choose,
    returnable,
    tune_baselines,
)
from haltwise.stop_rules.fixed_budget import FixedBudget
from haltwise.stop_rules.gradient_norm import GradientNorm
from haltwise.stop_rules.hazard_threshold import HazardThreshold
from haltwise.stop_rules.logistic import Logistic
from haltwise.stop_rules.patience import Patience
from haltwise.stop_rules.plateau import Plateau
from haltwise.stop_rules.policy import (
    RETURNABLE,
    CostUnit,
    ReturnedIterate,
    StopPolicy,
    costs,
    returned_excess,
    returned_steps,
    steps_charged,
    takes_update,
    total_cost,
)
from haltwise.stop_rules.ponder import PonderThreshold
from haltwise.stop_rules.posterior_mode import PosteriorMode

__all__ = [
    "BASELINES",
    "RETURNABLE",
    "AllOf",
    "AnyOf",
    "Calibration",
    "CostUnit",
    "DecisionTime",
    "FixedBudget",
    "GradientNorm",
    "HazardThreshold",
    "LevelRule",
    "Logistic",
    "Patience",
    "Plateau",
    "PonderThreshold",
    "PosteriorMode",
    "ReturnedIterate",
    "StopPolicy",
    "StopRule",
    "calibrate",
    "choose",
    "costs",
    "decide_all",
    "decisions",
    "decisions_and_reasons",
    "returnable",
    "returned_excess",
    "returned_steps",
    "steps_charged",
    "stop_rules",
    "takes_update",
    "total_cost",
    "tune_baselines",
]


def stop_rules() -> Mapping[str, type[StopRule]]:
    """Every named stop rule: what cards name and generic tests walk."""
    return discovery.collect(sys.modules[__name__], "STOP_RULES")
