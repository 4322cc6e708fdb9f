"""A record of all that is evaluated of B problems, at a cost that does not grow with the steps."""

import copy
import math
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise.processes.descent import note_in_rows
from haltwise.rollout.rows import Rows, gather_rows
from haltwise.tasks.base import Observation

__all__ = ["MEMORY", "Ledger"]

MEMORY = 6
"""Pairs of steps and changes of the gradient by which the curvature is known."""


@final
class Ledger:
    """All that was evaluated of B problems: how often, the best of it, and the latest.

    Args:
        start: Where they begin, shape [B, D].
        best: Whether the best point is kept, with its gradient.
        recent: Whether the latest points are, which tell the curvature.
        history: Whether the losses are.

    Attributes:
        rows: Of every problem, and one that is nobody's; see `haltwise.rollout.rows.Rows`.
        first: The observation of all problems at their start, once it was made.
    """

    def __init__(
        self, start: Tensor, *, best: bool = True, recent: bool = True, history: bool = False
    ) -> None:
        number, dim = start.shape
        count = torch.zeros(number + 1, dtype=torch.int64, device=start.device)
        self.rows: Rows = {"count": count}
        if best:
            self.rows |= {
                "loss": start.new_full((number + 1,), torch.inf),
                "params": torch.cat((start, start[:1])),
                "grad": start.new_zeros(number + 1, dim),
                "at": torch.zeros_like(count),
            }
        if recent:  # evaluation k is in place k modulo their number
            places = start.new_zeros(number + 1, MEMORY + 1, dim)
            self.rows |= {"points": places, "grads": places.clone()}
            self.rows["last"] = start.new_zeros(number + 1)
        self.first: Observation | None = None
        self._history = start.new_empty(number, 0) if history else None
        self._calls = 0

    @property
    def kind(self) -> tuple[object, ...]:
        """What is kept."""
        return *self.rows, self._history is not None

    @property
    def count(self) -> Tensor:
        """Gradients evaluated, int64 [B]."""
        return self.rows["count"][:-1]

    @property
    def loss(self) -> Tensor:
        """The lowest loss, infinite where none was finite, shape [B]."""
        return self.rows["loss"][:-1]

    @property
    def params(self) -> Tensor:
        """Where it is, shape [B, D]."""
        return self.rows["params"][:-1]

    @property
    def grad(self) -> Tensor:
        """The gradient there, shape [B, D]."""
        return self.rows["grad"][:-1]

    @property
    def at(self) -> Tensor:
        """Which evaluation it was, counted from 0, int64 [B]."""
        return self.rows["at"][:-1]

    @property
    def last(self) -> Tensor:
        """The loss of the latest evaluation, shape [B]."""
        return self.rows["last"][:-1]

    def note(self, items: Tensor, params: Tensor, loss: Tensor, grad: Tensor) -> None:
        """Note an evaluation of the problems at `items`, int64 [M]; B for none."""
        if self.first is None:  # that is of all
            self.first = Observation(loss, grad)
        if self._history is not None:
            self._note_loss(items, self.rows["count"].index_select(0, items), loss)
        note_in_rows(self.rows, items, params, loss, grad)

    def _note_loss(self, items: Tensor, count: Tensor, loss: Tensor) -> None:
        assert self._history is not None
        if self._calls == self._history.shape[1]:
            self._history = pad(self._history, (0, max(16, self._calls)), value=math.nan)
        self._calls += 1  # no problem has been evaluated more often
        self._history[items, count] = loss

    @property
    def losses(self) -> Tensor:
        """The loss of every evaluation in order, NaN where none was, shape [B, max(count)]."""
        assert self._history is not None
        return self._history[:, : int(self.count.max())]

    def latest(self) -> tuple[Tensor, Tensor, Tensor]:
        """The latest gradient [B, D], and the steps to it and changes of the gradient along them.

        The latter are as `haltwise.engines.lbfgs.forecast_gain` takes them, [B, MEMORY, D].
        """
        back = self.count.unsqueeze(1) - 1 - torch.arange(MEMORY + 1, device=self.count.device)
        place = (back % (MEMORY + 1)).unsqueeze(2)
        points, grads = (
            self.rows[name][:-1].take_along_dim(place, 1) for name in ("points", "grads")
        )
        known = (back[:, 1:] >= 0).unsqueeze(2)
        steps, changes = (
            torch.where(known, values[:, :-1] - values[:, 1:], 0) for values in (points, grads)
        )
        return grads[:, 0], steps, changes

    def part(self, items: Tensor) -> "Ledger":
        """A ledger that goes on with the problems at `items`, int64 [M]; B for none."""
        chosen = copy.copy(self)
        chosen.rows, none = gather_rows(self.rows, items), items.new_empty(0)
        chosen.first = Observation(none, none)  # that of all was made
        return chosen
