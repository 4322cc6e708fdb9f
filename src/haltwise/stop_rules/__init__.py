"""When to stop: one file a rule."""

from haltwise.stop_rules.base import (
    StepObservation,
    StopRule,
    Traces,
    decide_all,
    decisions,
    decisions_and_reasons,
)
from haltwise.stop_rules.composition import AllOf, AnyOf
from haltwise.stop_rules.cumulative_threshold import CumulativeThreshold
from haltwise.stop_rules.drawdown import Drawdown
from haltwise.stop_rules.fixed_budget import FixedBudget
from haltwise.stop_rules.gradient_norm import GradientNorm
from haltwise.stop_rules.hazard_threshold import HazardThreshold
from haltwise.stop_rules.logistic import Logistic
from haltwise.stop_rules.patience import Patience
from haltwise.stop_rules.plateau import Plateau
from haltwise.stop_rules.ponder import PonderThreshold
from haltwise.stop_rules.posterior_mode import PosteriorMode
from haltwise.stop_rules.sampling import Sampling

__all__ = [
    "AllOf",
    "AnyOf",
    "CumulativeThreshold",
    "Drawdown",
    "FixedBudget",
    "GradientNorm",
    "HazardThreshold",
    "Logistic",
    "Patience",
    "Plateau",
    "PonderThreshold",
    "PosteriorMode",
    "Sampling",
    "StepObservation",
    "StopRule",
    "Traces",
    "decide_all",
    "decisions",
    "decisions_and_reasons",
]
