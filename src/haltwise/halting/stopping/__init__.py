"""When to stop: one file a rule."""

from haltwise.halting.stopping.base import (
    Seen,
    StopRule,
    Traces,
    decide_all,
    decisions,
    decisions_and_reasons,
)
from haltwise.halting.stopping.composition import AllOf, AnyOf
from haltwise.halting.stopping.cumulative_threshold import CumulativeThreshold
from haltwise.halting.stopping.drawdown import Drawdown
from haltwise.halting.stopping.fixed_budget import FixedBudget
from haltwise.halting.stopping.gradient_norm import GradientNorm
from haltwise.halting.stopping.hazard_threshold import HazardThreshold
from haltwise.halting.stopping.logistic import Logistic
from haltwise.halting.stopping.patience import Patience
from haltwise.halting.stopping.plateau import Plateau
from haltwise.halting.stopping.ponder import PonderThreshold
from haltwise.halting.stopping.posterior_mode import PosteriorMode
from haltwise.halting.stopping.sampling import Sampling

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
    "Seen",
    "StopRule",
    "Traces",
    "decide_all",
    "decisions",
    "decisions_and_reasons",
]
