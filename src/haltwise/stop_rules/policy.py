"""Stop policies: a stop rule, the unit of its cost and the iterate that it returns.

A rule that decides at theta_t with its gradient in hand has paid for t + 1 gradients. Two units of
cost, both always reported:

- `CostUnit.UPDATES`: the number of updates applied; a stop at t costs t.
- `CostUnit.GRADIENTS`: the number of gradients evaluated; a stop at t costs t + 1. A decision made
  before the gradient at theta_{t+1} is requested uses just what is known after gamma_t, so it is
  charged alike; it is trained to look one step further.

What is returned is a `ReturnedIterate`. gamma_t is paid for, so where gradients are counted its
update is free; but where the loss oscillates theta_t is known to be good and theta_{t+1} is not.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, final

from haltwise.stop_rules.base import DecisionTime, StopRule

__all__ = ["RETURNABLE", "CostUnit", "ReturnedIterate", "StopPolicy"]


@final
class CostUnit(Enum):
    """The unit in which cost is counted."""

    UPDATES = "updates"
    GRADIENTS = "gradients"

    @property
    def decision_time(self) -> DecisionTime:
        """The natural time of decision: a gradient that is paid for is asked for only if needed."""
        after = self is CostUnit.UPDATES
        return DecisionTime.AFTER_GRADIENT if after else DecisionTime.BEFORE_GRADIENT


@final
class ReturnedIterate(Enum):
    """The iterate that a stop decided at theta_t returns."""

    NEXT = "next"
    """theta_{t+1}: the update of the gradient paid for already is applied."""
    CURRENT = "current"
    """theta_t."""
    BEST = "best"
    """The theta_s, s <= t, of lowest observed loss, as early stopping by patience is practised."""
    LEARNED = "learned"
    """theta_t where the halting model holds (`hold_logits` > 0), else theta_{t+1}."""


RETURNABLE: Mapping[CostUnit, tuple[ReturnedIterate, ...]] = MappingProxyType(
    {
        CostUnit.UPDATES: (ReturnedIterate.CURRENT, ReturnedIterate.BEST),
        CostUnit.GRADIENTS: (
            ReturnedIterate.NEXT,
            ReturnedIterate.CURRENT,
            ReturnedIterate.BEST,
            ReturnedIterate.LEARNED,
        ),
    }
)
"""What may be returned at the cost of each unit; the first is the default."""


@final
class StopPolicy(NamedTuple):
    """A stop rule and what is returned where it stops."""

    rule: StopRule
    returns: ReturnedIterate
