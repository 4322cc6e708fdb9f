"""An optimizer model: an update rule and, beside it, a halting model."""

from collections.abc import Iterable
from typing import final

import torch
from torch import nn

from haltwise import update_rules
from haltwise._core.errors import require
from haltwise.models.card import Card
from haltwise.models.halting_model import HaltingModel, described
from haltwise.stop_rules import CostUnit, StopPolicy
from haltwise.update_rules import UpdateRule

__all__ = ["OptimizerModel"]


@final
class OptimizerModel(nn.Module):
    """An update rule, learned or hand-designed, and what knows when to stop it.

    For the arguments see `HaltingModel`.

    Raises:
        InputError: The card names no rule, or a name or a setting is unknown.
    """

    def __init__(
        self,
        card: Card,
        generator: torch.Generator | None = None,
        own: Iterable[type] = (),
    ) -> None:
        super().__init__()
        require(card.rule is not None, "an optimizer model needs an update rule; name one")
        assert card.rule is not None
        self.rule: UpdateRule = update_rules.make(
            card.rule.name, card.rule.settings, generator, own
        )
        self.halting = HaltingModel(card, self.rule.readout_size, generator, own)

    def __repr__(self) -> str:
        return described(self, self.card)

    @property
    def card(self) -> Card:
        """The card of the halting model."""
        return self.halting.card

    def policy(self, unit: CostUnit | None = None) -> StopPolicy:
        """See `HaltingModel.policy`."""
        return self.halting.policy(unit)

    def rule_parameters(self) -> list[nn.Parameter]:
        """The learnable parameters of the rule: none if it is hand-designed."""
        return list(self.rule.parameters()) if isinstance(self.rule, nn.Module) else []
