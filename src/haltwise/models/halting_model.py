"""A halting model: a halter, its method and its card; it stands alone."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from haltwise._core.discovery import configure, find_known
from haltwise._core.errors import FitWarning, require, warn
from haltwise._core.tensors import widened
from haltwise.halting.halter import Halter
from haltwise.halting.methods import HaltingMethod, halting_methods
from haltwise.models.card import Card
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import CostUnit, StopPolicy

__all__ = ["HaltingModel", "described"]

_NOT_FITTING = 0.05
"""Share of the items that is worth a warning."""

State = dict[str, Tensor]


@final
class HaltingModel(nn.Module):
    """A model that decides when to stop a process, whatever advances it.

    Args:
        card: What to build, and how it stops.
        readout_size: R, what the process shows of its inner state.
        generator: Draws the initial weights.
        own: Classes of the caller's that the card may name.
    """

    def __init__(
        self,
        card: Card,
        readout_size: int = 0,
        generator: torch.Generator | None = None,
        own: Iterable[type] = (),
    ) -> None:
        super().__init__()
        self.card = card
        name, settings = card.method.name, card.method.settings
        kind = find_known(halting_methods(), name, "halting method", own)
        self.method: HaltingMethod = configure(kind, settings, name)
        self.halter: Halter | None = None
        if self.method.num_outputs:
            self.halter = Halter(card.halter, readout_size, self.method.num_outputs, generator)

    def __repr__(self) -> str:
        return described(self, self.card)

    @property
    def halts(self) -> bool:
        """Whether it learned anything about halting."""
        return self.halter is not None

    @property
    def readout_size(self) -> int:
        """R, the size of the read-out that a process must show."""
        return 0 if self.halter is None else self.halter.readout_size

    def policy(self, unit: CostUnit | None = None) -> StopPolicy:
        """The policy calibrated at the end of training: a stop rule and the iterate it returns.

        Args:
            unit: What is paid for; the host's own if None. Where gradients are, one is asked for
                only if it is forecast to be worth its price.

        Raises:
            InputError: Training was interrupted before halting was calibrated.
        """
        unit = self.card.unit if unit is None else unit
        require(
            unit in self.card.policies,
            "these weights do not know when to stop yet: their training ended before the stop "
            "rule was calibrated; finish it with haltwise train --resume, or give a stop rule",
        )
        return self.card.policies[unit]

    def trained_price(self, price: Tensor) -> Tensor:
        """The prices nearest to `price`, of any shape, that were seen in training.

        Beyond them the halter has learned nothing: gradients used would rise again with the price.
        Where it reads no units, every price is that of problems of another size.
        """
        card, halter = self.card, self.halter
        if halter is not None and halter.features is not None and not halter.features.has_units:
            return price
        return price.clamp(card.price / card.price_range, card.price * card.price_range)

    def warn_of_prices(self, asked: Tensor) -> None:
        """Say so where many of the prices asked for, shape [B], are none that were trained on."""
        card, outside = self.card, (self.trained_price(asked) - asked).abs() > 1e-4 * asked
        if self.halts and widened(outside).mean() > _NOT_FITTING:
            low, high = card.price / card.price_range, card.price * card.price_range
            warn(
                f"the weights know prices from {low:.3g} to {high:.3g}, but {int(outside.sum())} "
                f"of {len(asked)} items have others, such as {asked[outside][0].item():.3g} in the "
                "units of the weights; they are stopped as at the nearest of these; choose weights "
                "trained for such a price",
                FitWarning,
            )

    def prepare(self) -> "HaltingModel":
        """The same for many calls of `step`, between which the weights stay where they are.

        What these share is computed once. Drop the prepared model when they are done.
        """
        if self.halter is None:
            return self
        twin = copy.copy(self)
        twin._modules = {**self._modules, "halter": self.halter.prepare()}
        return twin

    def init(self, num_items: int, like: Tensor) -> State:
        """The memory before the first step, on the device of `like`."""
        return {} if self.halter is None else self.halter.init(num_items, self._in_own_dtype(like))

    def step(
        self, signals: Tensor | None, readout: Tensor | None, price: Tensor, state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Outputs at one step by name, without a graph, and the memory for the next.

        Signals are of shape [B, S], the read-out [B, R] and the price c [B].
        """
        if self.halter is None:
            return {}, state
        require(signals is not None, "the halting model reads signals, but the process shows none")
        assert signals is not None
        readout = signals.new_empty(len(signals), 0) if readout is None else readout
        price = self._in_own_dtype(self.trained_price(price))
        own = self._in_own_dtype(signals), self._in_own_dtype(readout)
        raw, state = self.halter.step(*own, price, state)
        return self.method.outputs(raw, price), state

    def forward(self, signals: Tensor, readouts: Tensor, price: Tensor) -> dict[str, Tensor]:
        """Outputs along whole trajectories by name, differentiable, shapes [B, T, ...].

        Signals are of shape [B, T, S], read-outs [B, T, R] and the price c [B]. What a process
        shows does not depend on the price, so one recording serves every price.
        """
        if self.halter is None:
            return {}
        price = self._in_own_dtype(self.trained_price(price))
        own = self._in_own_dtype(signals), self._in_own_dtype(readouts)
        return self.method.outputs(self.halter(*own, price), price)

    def initial(self, price: Tensor) -> dict[str, Tensor]:
        """Outputs before step 0, when nothing but the price [B] is known, shapes [B, ...]."""
        return {} if self.halter is None else self.method.outputs(self.halter.initial(price), price)

    def _in_own_dtype(self, value: Tensor) -> Tensor:
        """What a process shows, which may compute in any, in the dtype of the weights."""
        return value.to(next(self.parameters()).dtype)

    @torch.no_grad()
    def attach(self, trajectory: Trajectory, price: float | Tensor) -> Trajectory:
        """The trajectory with this model's outputs at a price, a number or shape [B]."""
        if self.halter is None:
            return trajectory
        if not isinstance(price, Tensor):
            price = torch.full_like(trajectory.loss[:, 0], price)
        outputs = self(trajectory.known("signals"), trajectory.shown_readouts(), price)
        return replace(trajectory, outputs=outputs)


def described(model: nn.Module, card: Card) -> str:
    """A model in a line."""
    number = sum(weight.numel() for weight in model.parameters())
    return f"{type(model).__name__}({card.summary}; {number:,} weights)"
