"""Whether weights fit what they are used on, by signals that are measured anyway."""

from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import FitWarning, warn
from haltwise._core.plugins import is_file
from haltwise._core.tensors import widened
from haltwise.models.card import Card
from haltwise.models.scales import Scales
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS

__all__ = ["MANY_MISFITS", "FirstStepsCheck", "is_below_those_seen", "warn_of_misfits"]

MANY_MISFITS = 0.5
"""Share of the items that is worth a warning."""


@final
class FirstStepsCheck:
    """Compare the first two steps of B items with those in training, as they are observed.

    Args:
        scales: What the card remembers.
        num_items: B.
    """

    def __init__(self, scales: Scales, num_items: int) -> None:
        self._scales = scales
        self._first = torch.zeros(num_items, len(SIGNALS))
        self._foreign = torch.zeros(num_items, dtype=torch.bool)

    def observe(self, items: Tensor, observation: StepObservation) -> None:
        """Note a step of the items at `items`, int64 [M]."""
        if observation.step == 0:
            self._first = observation.known("signals")
            # The gradient is all that is known of those that halt here.
            self._foreign = self._scales.is_foreign(self._first, self._first)
        elif observation.step == 1:
            second = observation.known("signals")
            self._foreign[items] = self._scales.is_foreign(self._first[items], second)

    def warn(self) -> None:
        """Warn where many do not fit."""
        warn_of_misfits(self._foreign)


def is_below_those_seen(card: Card, loss: Tensor, price: Tensor) -> Tensor:
    """Which losses [B] are lower than any that weights were trained on, by more than a price [B].

    How far a loss is above 0 tells how much is left to gain on families of the package, whose
    losses are never negative. Of other families it is not known.
    """
    is_known = card.family is not None and not is_file(card.family.name)
    return loss < -price if is_known else torch.zeros_like(loss, dtype=torch.bool)


def warn_of_misfits(foreign: Tensor) -> None:
    """Say so where most of the items are far from those in training, bool [B]."""
    if widened(foreign).mean() > MANY_MISFITS:
        warn(
            f"{int(foreign.sum())} of {len(foreign)} items lie far outside what the weights were "
            "trained on, by the sizes of their gradients, steps and gains; choose other weights by "
            "haltwise.recommend, or train some on such problems",
            FitWarning,
        )
