"""What guards `haltwise.solve`: a record of evaluations, and a check of units.

The guard (`haltwise.interfaces.chunk`) reads what is evaluated anyway. All of it is remembered, so
the best point seen can be returned; the first steps tell in which units a problem is one that the
weights know; and where a problem shows that they do not fit it, L-BFGS goes on from its best point
(`haltwise.engines.lbfgs`). Learned optimizers with such guards: Heaton et al. 2020 (safeguarded
L2O), Prémont-Schwarz et al. 2022 (loss-guarded L2O); both compare with the fallback's step at an
evaluation a step, which is saved here: a problem is handed over once, when it has failed.
"""

import copy
import math
from typing import Self, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.tensors import ZERO, nested_state, quantiles
from haltwise.models.scales import FirstSteps, Scales, UsualRange
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS
from haltwise.rollout.early_exit import RowWatch
from haltwise.rollout.ledger import Ledger
from haltwise.rollout.rows import Rows, gather_rows, scatter_rows

__all__ = ["GuardWatch", "UnitCheck"]

_MANY = 20  # problems whose median says more than each of them
_SLACK = 1.0  # by which the median may differ from that in training; a factor of e
_FINE = 0.35  # likewise at further attempts
_WIDE = 3.4  # likewise of what is less sure or matters less: a first gradient, and gains
_MARGIN = 0.5  # times the slack, beyond the range in training, for a single problem
_ENOUGH = 2**20  # values to take quantiles of
_LEAP = math.log(10)  # by how much too long a first step is taken to be that finds no curvature


@final
class GuardWatch(RowWatch):
    """Note what is evaluated of L problems, and take those away that go nowhere.

    Args:
        ledger: Of B problems.
        items: Which of them these are, int64 [L].
        patience: Steps without a new lowest loss that are granted; any number if None.
        check: Of the units in which they are seen, if they are to be checked.
    """

    def __init__(
        self,
        ledger: Ledger,
        items: Tensor,
        patience: int | None = None,
        check: "UnitCheck | None" = None,
    ) -> None:
        self._ledger, self._patience, self._check = ledger, patience, check
        self._own: Rows = {"items": pad(items, (0, 1), value=len(ledger.count))}
        if check is not None:
            self._own["last"] = check.scale.new_zeros(len(items) + 1, len(SIGNALS))
        self._knows_next = ledger.first is not None

    @property
    def last(self) -> Tensor:
        """Signals of the last step, where units are checked, shape [L, S]."""
        return self._own["last"][:-1]

    @property
    def rows(self) -> Rows:
        return {**nested_state(self._ledger.rows, "ledger."), **self._own}

    @property
    def kind(self) -> tuple[object, ...]:
        return self._patience, *self._own, *self._ledger.kind

    def __call__(self, items: Tensor, observation: StepObservation) -> Tensor | None:
        ledger, here = self._ledger, self._own["items"][items]
        if not self._knows_next:
            params, grad = (observation.known(name) for name in ("params", "grad"))
            ledger.note(here, params, observation.loss, grad)
        self._knows_next = False
        if "last" in self._own:
            self._own["last"].index_copy_(0, items, observation.known("signals"))
        if self._patience is None:
            return None
        count, at = (ledger.rows[name][here] for name in ("count", "at"))
        waited = (count - 1 - at).clamp_max(observation.step)
        hopeless = (waited > self._patience) | (observation.known("log_grad_norm") <= ZERO)
        wrong = None if self._check is None else self._check(items, observation)
        return hopeless if wrong is None else hopeless | wrong

    def part(self, items: Tensor) -> Self:
        chosen = copy.copy(self)
        chosen._ledger = self._ledger.part(self._own["items"][items])
        chosen._own = gather_rows(self._own, items)
        chosen._own["items"] = torch.arange(len(items) + 1, device=items.device)
        chosen._check = None  # it judges the first steps alone
        return chosen

    def take_back(self, items: Tensor, part: Self) -> None:
        scatter_rows(self._ledger.rows, self._own["items"][items], part._ledger.rows)
        if "last" in self._own:
            self._own["last"].index_copy_(0, items, part.last)


@final
class UnitCheck:
    """Watch the first two steps of M problems that are seen in some units.

    Many problems that differ no more than those in training are of one kind: they are judged by
    their median, sharply. Few, or a mixture, are judged each by itself, by the range seen in
    training. The first gradient alone cannot tell small parameters from large losses: a price as
    unusual says so, being in units of the loss; else the first step tells. Losses are not scaled
    so far that a price leaves the range trained on.

    Args:
        scales: Of the problems that the model was trained on.
        scale: log of the scale of parameters in which the problems are seen, shape [M].
        loss_scale: log of that of losses, shape [M].
        price_shift: log(price of the model / price asked for), shape [M].
        price_range: The log of what either side of the model's price was trained on.
        judges_gradients: Whether the first gradient is to be judged, which needs no step.

    Attributes:
        scale, loss_scale: Corrected.
        wrong: Which problems are seen in wrong units, bool [M]; they are taken away.
        is_small: Where the first gradient was far below all in training, bool [M].
        first, second: Signals of steps 0 and 1, each [M, S].
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
        self.wrong = self.is_small = torch.zeros_like(scale, dtype=torch.bool)
        self.first = self.second = scale.new_zeros(len(scale), len(SIGNALS))
        self._scales, self._price_shift, self._price_range = scales, price_shift, price_range
        self._judges_gradients = judges_gradients

    def __call__(self, items: Tensor, observation: StepObservation) -> Tensor | None:
        """Judge a step of the problems at `items` (int64 [L]) that still run."""
        signals = observation.known("signals")
        if observation.step > 1:
            return None
        if observation.step == 0:
            self.first, self.second = signals, signals.clone()
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
        # Too short steps tell the scale, unless none is taken; much too long ones are not tried.
        move = torch.where(explained, shifted, move)
        self.is_small = move > 2 * _SLACK
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
    """How far values [M] must move to be usual: shape [] if all together, and each, shape [M]."""
    together = values.new_zeros(())
    number = int(known.sum())
    if number == 0:
        return together, torch.zeros_like(values)
    move = usual.middle - values[known].median()
    if number >= _MANY:
        low, high = quantiles(values[known][:_ENOUGH], 0.25, 0.75)
        if high - low <= usual.high - usual.low:  # of one kind: a stray one is merely hard
            together = torch.where(move.abs() > slack, move, together)
            return together, together.expand(len(values))
    alone = known & ~usual.holds(values, _MARGIN * slack)
    return together, torch.where(alone, usual.middle - values, 0)
