"""Whether weights fit what they are used on, by signals that are measured anyway."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import FitWarning, warn
from haltwise._core.plugins import is_file
from haltwise._core.tensors import widened
from haltwise.models.card import Card
from haltwise.models.first_rounds import CHECKED, FirstRounds
from haltwise.models.scales import Scales
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS

__all__ = [
    "MANY_MISFITS",
    "FirstRoundsCheck",
    "FirstStepsCheck",
    "first_steps_check",
    "is_below_those_seen",
    "warn_of_misfits",
    "warn_of_other_rounds",
]

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


@final
class FirstRoundsCheck:
    """Compare the first steps of B items with those of processes trained on, as they are observed.

    Args:
        rounds: What the card remembers.
        num_items: B.
    """

    def __init__(self, rounds: FirstRounds, num_items: int) -> None:
        self._rounds = rounds
        self._first = self._lowest = torch.full((num_items,), torch.nan)
        self._foreign: dict[str, Tensor] = {}

    def observe(self, items: Tensor, observation: StepObservation) -> None:
        """Note a step of the items at `items`, int64 [M]."""
        step, loss = observation.step, observation.loss
        if step > CHECKED[-1]:
            return
        if step == 0:
            self._first, self._lowest = loss, loss.clone()
        lowest = torch.minimum(self._lowest[items], loss)
        self._lowest[items] = lowest
        if step in CHECKED:
            found = self._rounds.misfits(step, self._first[items], lowest, observation.signals)
            for name, foreign in found.items():
                none = torch.zeros_like(self._first, dtype=torch.bool)
                self._foreign.setdefault(name, none)[items] |= foreign

    def warn(self) -> None:
        """Warn where many do not fit."""
        warn_of_other_rounds(self._foreign)


def first_steps_check(card: Card, num_items: int) -> FirstStepsCheck | FirstRoundsCheck | None:
    """What compares the first steps of B items with those that a card remembers, if it does."""
    if card.scales is not None:
        return FirstStepsCheck(card.scales, num_items)
    return None if card.first_rounds is None else FirstRoundsCheck(card.first_rounds, num_items)


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


def warn_of_other_rounds(foreign: Mapping[str, Tensor]) -> bool:
    """Say so where most of the items are far from those trained on in a size, bool [B] each."""
    often = [name for name, each in foreign.items() if widened(each).mean() > MANY_MISFITS]
    if often:
        num = len(foreign[often[0]])
        warn(
            f"{'this run lies' if num == 1 else f'most of {num} items lie'} far outside what was "
            f"trained on, by the {' and '.join(often)} of the first rounds, so a stop may come at "
            "the wrong time; count losses and parameters in the units trained on, or train on such "
            "runs",
            FitWarning,
        )
    return bool(often)
