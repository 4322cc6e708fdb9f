"""What guards `haltwise.solve`: a record of evaluations, and a check of units.

The guard (`haltwise.interfaces.chunk`) reads what is evaluated anyway. All of it is remembered, so
the best point seen can be returned; the first steps tell in which units a problem is one that the
weights know; and where a problem shows that they do not fit it, L-BFGS goes on from its best point
(`haltwise.rollout.descent`). Learned optimizers with such guards: Heaton et al. 2020 (safeguarded
L2O), Prémont-Schwarz et al. 2022 (loss-guarded L2O); both compare with the fallback's step at an
evaluation a step, which is saved here: a problem is handed over once, when it has failed.
"""

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.tensors import ZERO
from haltwise.models.scales import FirstSteps, Scales, UsualRange
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS
from haltwise.rollout.descent import MEMORY
from haltwise.tasks.base import Observation, TaskBatch, ask

__all__ = ["Ledger", "UnitCheck", "WatchedBatch"]

_MANY = 20  # problems whose median says more than each of them
_SLACK = 1.0  # by which the median may differ from that in training; a factor of e
_FINE = 0.35  # likewise at further attempts
_WIDE = 3.4  # likewise of what is less sure or matters less: a first gradient, and gains
_MARGIN = 0.5  # times the slack, beyond the range in training, for a single problem
_ENOUGH = 2**20  # values to take quantiles of
_LEAP = math.log(10)  # by how much too long a first step is taken to be that finds no curvature


@final
class Ledger:
    """All that was evaluated of B problems: how often, the best of it, and the latest.

    Attributes:
        count: Gradients evaluated, int64 [B].
        loss: The lowest loss, shape [B]; infinite where none was finite.
        params: Where it is, shape [B, D].
        grad: The gradient there, shape [B, D].
        at: Which evaluation it was, counted from 0, int64 [B].
        first: The observation of all problems at their start, once it was made.
    """

    def __init__(self, start: Tensor) -> None:
        self.count = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        self.loss = start.new_full((len(start),), torch.inf)
        self.params, self.grad = start.clone(), torch.zeros_like(start)
        self.at = torch.zeros_like(self.count)
        self.first: Observation | None = None
        self._calls = 0
        self._losses = start.new_empty(len(start), 0)
        # Evaluation k of problem b is in row (k modulo their number) B + b.
        self._latest_params = start.new_zeros((MEMORY + 1) * len(start), start.shape[1])
        self._latest_grads = torch.zeros_like(self._latest_params)

    def note(self, items: Tensor, params: Tensor, seen: Observation) -> None:
        """Note an evaluation of the problems at `items`, int64 [K]."""
        loss, grad = seen
        if self._calls == self._losses.shape[1]:
            self._losses = pad(self._losses, (0, max(16, self._calls)), value=math.nan)
        self._calls += 1  # no problem has been evaluated more often
        count = self.count[items]
        self._losses[items, count] = loss
        row = count % (MEMORY + 1) * len(self.count) + items
        self._latest_params.index_copy_(0, row, params)
        self._latest_grads.index_copy_(0, row, grad)
        better = (loss < self.loss[items]) & grad.isfinite().all(1)
        index = items[better]
        self.loss[index], self.params[index] = loss[better], params[better]
        self.grad[index], self.at[index] = grad[better], count[better]
        self.count[items] = count + 1

    @property
    def losses(self) -> Tensor:
        """The loss of every evaluation in order, NaN where none was, shape [B, max(count)]."""
        return self._losses[:, : int(self.count.max())]

    def latest(self) -> tuple[Tensor, Tensor, Tensor]:
        """The latest gradient [B, D], and the steps to it and changes of the gradient along them.

        The latter are as `haltwise.rollout.descent.forecast_gain` takes them, [B, MEMORY, D].
        """
        back = self.count.unsqueeze(1) - 1 - torch.arange(MEMORY + 1, device=self.count.device)
        items = torch.arange(len(back), device=back.device).unsqueeze(1)
        row = back % (MEMORY + 1) * len(back) + items
        points, grads = self._latest_params[row], self._latest_grads[row]
        known = (back[:, 1:] >= 0).unsqueeze(2)
        steps, changes = (
            torch.where(known, values[:, :-1] - values[:, 1:], 0) for values in (points, grads)
        )
        return grads[:, 0], steps, changes


@final
@dataclass(frozen=True, eq=False)
class WatchedBatch(TaskBatch):
    """A batch whose evaluations are noted; the first, at the start, is made once only."""

    inner: TaskBatch
    items: Tensor
    """Which problems of the ledger these are, int64 [B]."""
    ledger: Ledger

    @classmethod
    def of(cls, batch: TaskBatch, ledger: Ledger) -> Self:
        """All problems of a batch."""
        items = torch.arange(batch.num_problems, device=batch.start.device)
        return cls(batch.start, batch, items, ledger)

    @property
    def reference_loss(self) -> Tensor:
        return self.inner.reference_loss

    @property
    def stochastic(self) -> bool:
        return self.inner.stochastic

    def observe(self, params: Tensor, step: int) -> Observation:
        first = self.ledger.first
        if step == 0 and first is not None and params is self.start:
            return Observation(first.loss[self.items], first.grad[self.items])
        seen = ask(self.inner.observe, params, step)
        self.ledger.note(self.items, params, seen)
        if first is None:
            self.ledger.first = seen
        return seen

    def observe_loss(self, params: Tensor, step: int) -> Tensor:
        with torch.enable_grad():  # as `ask`
            return self.inner.observe_loss(params, step).detach()

    def select(self, index: Tensor) -> Self:
        return type(self)(
            self.start[index], self.inner.select(index), self.items[index], self.ledger
        )


@final
class UnitCheck:
    """Watch the first two steps of K problems that are seen in some units.

    Many problems that differ no more than those in training are of one kind: they are judged by
    their median, sharply. Few, or a mixture, are judged each by itself, by the range seen in
    training. The first gradient alone cannot tell small parameters from large losses: a price as
    unusual says so, being in units of the loss; else the first step tells. Losses are not scaled
    so far that a price leaves the range trained on.

    Args:
        scales: Of the problems that the model was trained on.
        scale: log of the scale of parameters in which the problems are seen, shape [K].
        loss_scale: log of that of losses, shape [K].
        price_shift: log(price of the model / price asked for), shape [K].
        price_range: The log of what either side of the model's price was trained on.
        judges_gradients: Whether the first gradient is to be judged, which needs no step.

    Attributes:
        scale, loss_scale: Corrected.
        wrong: Which problems are seen in wrong units, bool [K]; they are taken away.
        first, second, last: Signals of steps 0, 1 and the last, each [K, S].
    """

    def __init__(
        self,
        scales: Scales,
        scale: Tensor,
        loss_scale: Tensor,
        price_shift: Tensor,
        price_range: float,
        *,
        judges_gradients: bool,
    ) -> None:
        self.scale, self.loss_scale = scale.clone(), loss_scale.clone()
        self.wrong = torch.zeros_like(scale, dtype=torch.bool)
        self.first = self.second = self.last = scale.new_zeros(len(scale), len(SIGNALS))
        self._scales, self._price_shift, self._price_range = scales, price_shift, price_range
        self._judges_gradients = judges_gradients

    def __call__(self, items: Tensor, observation: StepObservation) -> Tensor | None:
        """Judge a step of the problems at `items` (int64 [L]) that still run."""
        signals = observation.known("signals")
        if observation.step > 0:
            self.last[items] = signals
        if observation.step > 1:
            return None
        if observation.step == 0:
            self.first, self.second, self.last = signals, signals.clone(), signals.clone()
            self._first_loss = observation.loss
            if self._judges_gradients:
                self._judge_gradients(signals)
        else:
            self.second[items] = signals
            self._judge_steps(items, signals, observation.loss)
        return self.wrong[items] if self.wrong.any() else None

    def _judge_gradients(self, signals: Tensor) -> None:
        grad, usual = FirstSteps.of(signals, signals).grad, self._scales.grad
        known = grad.isfinite() & (grad > ZERO)
        _, move = _moves(grad, known, usual)
        _, shifted = _moves(grad + self._price_shift, known, usual)
        explained = shifted.abs() < move.abs()
        self.loss_scale += torch.where(explained, self._price_shift, 0)
        # Too short steps do no harm and tell the scale; much too long ones are not tried.
        move = torch.where(explained, shifted, move)
        move = torch.where(move < -2 * _SLACK, move, 0)
        self.scale += move
        self.wrong |= explained | (move != 0)

    def _judge_steps(self, items: Tensor, signals: Tensor, loss: Tensor) -> None:
        seen = FirstSteps.of(self.first[items], signals)
        slack = _SLACK if self._judges_gradients else _FINE  # begun to correct it, do it well
        together, move = _moves(seen.length, seen.is_known, self._scales.length, slack)
        leaps = ~seen.is_known & ~(loss <= self._first_loss[items])
        if leaps.sum() * 2 > len(items):  # most went so far that the loss is concave there
            together = move.new_tensor(-_LEAP)
            move = together.expand(len(items))
        self._move(self.scale, items, together, move)
        fits = seen.is_known & (move == 0)
        gains = _moves(seen.gain, fits, self._scales.gain, _WIDE)
        self._move(self.loss_scale, items, *gains, self._price_shift, self._price_range)

    def _move(
        self,
        scale: Tensor,
        items: Tensor,
        together: Tensor,
        move: Tensor,
        middle: Tensor | float = 0.0,
        reach: float = math.inf,
    ) -> None:
        """Move the scales of all problems together, of those at `items` by `move` [L].

        None moves away from `middle` beyond `reach`.
        """
        moves = together.expand(len(scale)).clone()  # of those that have halted, too
        moves[items] = move
        away = scale - middle
        moved = (away + moves).clamp(away.clamp_max(-reach), away.clamp_min(reach))
        self.wrong |= moved != away
        scale += moved - away


def _moves(
    values: Tensor, known: Tensor, usual: UsualRange, slack: float = _SLACK
) -> tuple[Tensor, Tensor]:
    """How far values [K] must move to be usual: shape [] if all together, and each, shape [K]."""
    together = values.new_zeros(())
    number = int(known.sum())
    if number == 0:
        return together, torch.zeros_like(values)
    move = usual.middle - values[known].median()
    if number >= _MANY:
        low, high = torch.quantile(values[known][:_ENOUGH], values.new_tensor([0.25, 0.75]))
        if high - low <= usual.high - usual.low:  # of one kind: a stray one is merely hard
            together = torch.where(move.abs() > slack, move, together)
            return together, together.expand(len(values))
    alone = known & ~usual.holds(values, _MARGIN * slack)
    return together, torch.where(alone, usual.middle - values, 0)
