"""Posteriors over the halting step behind one interface: one file a posterior.

To be meta-trained by name (`haltwise train --posterior NAME`), a file also defines

- `OBJECTIVES`, from the name to what is minimised, in prices: a function of what
  `haltwise.training.objective` calls a rollout that gives one value per problem, shape [B];
- `STOP_RULES`, from the name to what stops then: a function of `AFTER` or `BEFORE` that gives a
  stop rule.
"""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from haltwise._core import discovery as _discovery
from haltwise.halting.posteriors.base import Posterior
from haltwise.halting.posteriors.graves import GravesPosterior
from haltwise.halting.posteriors.softmax import SoftmaxPosterior
from haltwise.halting.posteriors.stick_breaking import StickBreakingPosterior

if TYPE_CHECKING:
    from haltwise.stop_rules import StopRule

__all__ = [
    "GravesPosterior",
    "Posterior",
    "SoftmaxPosterior",
    "StickBreakingPosterior",
    "objectives",
    "stop_rules",
]


def objectives() -> "Mapping[str, Callable[[Any], Tensor]]":
    """What is minimised where halting is learned by the posterior of that name."""
    return _discovery.collect(sys.modules[__name__], "OBJECTIVES")


def stop_rules() -> "Mapping[str, Callable[[int], StopRule]]":
    """What stops where halting was learned by the posterior of that name."""
    return _discovery.collect(sys.modules[__name__], "STOP_RULES")
