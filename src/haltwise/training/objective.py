"""What meta-training minimises, per problem, in units of the default price."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from haltwise.halting.methods import HaltingExamples
from haltwise.halting.objectives import sum_of_losses
from haltwise.models.halting_model import HaltingModel

__all__ = ["MetaObjective"]


@final
class MetaObjective:
    """The halting method's objective, and the mean loss of the update rule.

    Args:
        model: Whose outputs are judged.
        horizon: T, steps of an unroll.
        price: The default price, in which losses are counted.
        sum_weight: Weight of the mean loss beside the halting objective.
    """

    def __init__(
        self, model: HaltingModel, *, horizon: int, price: float, sum_weight: float
    ) -> None:
        self._model = model
        self._unit, self._sum_weight = horizon * price, sum_weight

    def joint(
        self,
        excess: Tensor,
        outputs: Mapping[str, Tensor],
        price: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The objective of rule and halter together, shape [B]; see `halting`."""
        losses = self.losses(excess)
        if not self._model.halts:
            return losses
        halting = self.halting(excess, outputs, price, None, generator)
        return halting + self._sum_weight * losses

    def losses(self, excess: Tensor) -> Tensor:
        """The rule's alone: the mean loss over steps 1..T (L2L), shape [B]."""
        return sum_of_losses(excess) / self._unit

    def halting(
        self,
        excess: Tensor,
        outputs: Mapping[str, Tensor],
        price: Tensor,
        progress: float | None,
        generator: torch.Generator,
    ) -> Tensor:
        """The halter's alone, shape [B]; see `HaltingExamples`."""
        method = self._model.method
        initial = self._model.initial(price) if method.has_initial else {}
        return method.objective(
            HaltingExamples(excess, outputs, initial, price, progress, generator)
        )
