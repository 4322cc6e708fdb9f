"""When to stop: one file a rule."""

from haltwise.halting.stopping.base import Seen, StopRule, Traces, decisions
from haltwise.halting.stopping.fixed_budget import FixedBudget
from haltwise.halting.stopping.gradient_norm import GradientNorm
from haltwise.halting.stopping.hazard_threshold import HazardThreshold
from haltwise.halting.stopping.logistic import Logistic
from haltwise.halting.stopping.patience import Patience
from haltwise.halting.stopping.plateau import Plateau
from haltwise.halting.stopping.ponder import PonderThreshold
from haltwise.halting.stopping.posterior_mode import PosteriorMode

__all__ = [
    "FixedBudget",
    "GradientNorm",
    "HazardThreshold",
    "Logistic",
    "Patience",
    "Plateau",
    "PonderThreshold",
    "PosteriorMode",
    "Seen",
    "StopRule",
    "Traces",
    "decisions",
]
