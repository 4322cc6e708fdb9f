"""When problems stop that an engine works on: by a price, or by SciPy's tolerances."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import real_number
from haltwise.engines.base import Memory, Point, Proposal, rounding

__all__ = ["CLEARLY", "FLAT", "LBFGSB", "EngineStop", "PriceStop", "ToleranceStop"]

FLAT = 1e-2
"""Times the first gradient's norm: where a gradient is smaller, a problem is as good as solved."""

CLEARLY = 3
"""Prices; a forecast of less is within what it errs by on problems that are solved."""

_PATIENCE = 3  # steps in a row that may fail to earn their price where little is left to gain
_LONG_PATIENCE = 10  # and anywhere else: from one valley to the next
_STALLS, _LONG_STALLS = 6, 60  # steps in a row that do not lower the loss, see `ToleranceStop`
_STEEP = 0.9  # times the slope where it began: a step that ends as steeply is too short to tell
_AGREES = 0.25  # share of the forecast fall by which a step of least squares must lower the loss


class EngineStop(ABC):
    """A reason to stop, pure functions of points and memories."""

    is_recordable: ClassVar[bool] = True
    """Whether `decide` and `learn` copy no values to the host and read the memory alone."""

    @property
    @abstractmethod
    def reasons(self) -> tuple[str, ...]:
        """Possible reasons of a stop, in words."""

    @property
    def failures(self) -> tuple[int, ...]:
        """Which of them are no success."""
        return ()

    @abstractmethod
    def init(self, point: Point) -> Memory:
        """The memory at the first point of all."""

    @abstractmethod
    def decide(self, point: Point, proposal: Proposal, memory: Memory) -> tuple[Tensor, Memory]:
        """Decide before a step which problems stop.

        Returns:
            Index into `reasons` of what stops each, -1 where it goes on, int64 [M]; and the memory
            for `learn`.
        """

    @abstractmethod
    def learn(
        self, before: Point, proposal: Proposal, after: Point, taken: Tensor, memory: Memory
    ) -> Memory:
        """The memory after a step, `after` being `before` where it was not taken.

        `memory` is that of the last `decide`.
        """

    def completed(self, reason: Tensor, left: Tensor) -> Tensor:
        """The reasons once the step at hand was tried; see `Engine.completes`.

        Args:
            reason: Index into `reasons`, or outside of it where this did not stop a problem; int64
                [B].
            left: What that step was forecast to gain and did not, in units of the loss, shape [B].
        """
        del left
        return reason


@final
class PriceStop(EngineStop):
    """Stop where a step is not worth its price.

    Where the gain of a step is known by the curvature at the point (Newton's decrement), a problem
    stops once that is no more than the price. Elsewhere it stops once 10 steps in a row have each
    earned less than the price; 3 are enough where the same is forecast of the next and the gradient
    is below `FLAT` times the first. Of a step that is too short to tell nothing is forecast. It is
    no success if the gradient is not, and clearly more than the price is left to gain.

    Args:
        price: What an evaluation must earn, in units of the loss, shape [M].
        first_norm: Norm of the gradient at which each problem began, shape [M]; that of the first
            point if None.
        searches: Whether steps are made to lower the loss, so that their forecast tells what is
            left to gain. Those of a rule may be too short to tell, and may climb.
    """

    def __init__(
        self, price: Tensor, first_norm: Tensor | None = None, *, searches: bool = True
    ) -> None:
        self._price, self._first_norm, self._searches = price, first_norm, searches

    @property
    def reasons(self) -> tuple[str, ...]:
        return (
            "the last steps earned less than their price",
            "another step is forecast to gain less than its price",
            "the last steps earned less than their price, though by the curvature seen far more is "
            "left to gain; is its gradient right, and the method or its rate right for it?",
        )

    @property
    def failures(self) -> tuple[int, ...]:
        return (2,)

    def init(self, point: Point) -> Memory:
        norm = _norm(point.grad)
        return {
            "price": self._price,
            "first_norm": norm if self._first_norm is None else self._first_norm,
            "waited": torch.zeros(len(point.loss), dtype=torch.int64, device=point.loss.device),
            "curvature": torch.zeros_like(point.loss),  # along the last step of a rule
            "lowest": point.loss,
            "lowest_norm": norm,
        }

    def decide(self, point: Point, proposal: Proposal, memory: Memory) -> tuple[Tensor, Memory]:
        poor = proposal.gain <= memory["price"]
        if proposal.is_short is not None:
            poor &= ~proposal.is_short
        flat = FLAT * memory["first_norm"]
        solved = poor & (_norm(point.grad) <= flat)
        waited = memory["waited"]
        halts = ((waited >= _PATIENCE) & solved) | (waited >= _LONG_PATIENCE)
        left = self._left(point, proposal, memory) > CLEARLY * memory["price"]
        fails = halts & left & (memory["lowest_norm"] > flat)
        reason = (halts.long() - 1).masked_fill(fails, 2)
        return reason.masked_fill(poor & proposal.is_known, 1), memory

    def learn(
        self, before: Point, proposal: Proposal, after: Point, taken: Tensor, memory: Memory
    ) -> Memory:
        earned = taken & (before.loss - after.loss > memory["price"])
        curvature = memory["curvature"]
        if not self._searches:
            bend = (proposal.move * (after.grad - before.grad)).sum(1)
            curvature = (bend / proposal.move.square().sum(1)).nan_to_num(0, 0, 0)
        lower = after.loss < memory["lowest"]
        return {
            **memory,
            "waited": (memory["waited"] + 1).masked_fill(earned, 0),
            "curvature": curvature,
            "lowest": torch.where(lower, after.loss, memory["lowest"]),
            "lowest_norm": torch.where(lower, _norm(after.grad), memory["lowest_norm"]),
        }

    def _left(self, point: Point, proposal: Proposal, memory: Memory) -> Tensor:
        """What is left to gain, shape [M]; of a rule by the best step along the gradient."""
        if self._searches:
            return proposal.gain
        curvature = memory["curvature"]
        tells = (curvature > 0) & (point.loss <= memory["lowest"] + memory["price"])
        return torch.where(tells, 0.5 * memory["lowest_norm"].square() / curvature, torch.inf)


def _norm(grad: Tensor) -> Tensor:
    return grad.square().sum(1).sqrt()


@final
@dataclass(frozen=True)
class ToleranceStop(EngineStop):
    """Stop at tolerances that mean what they mean in SciPy, and where nothing can be gained.

    The latter is so after six steps that did not lower the loss by more than its rounding, where no
    more is forecast of the next, and anywhere after 60 of them.

    Args:
        gtol: Stop where max_i |g_i| <= gtol: that of `scipy.optimize.minimize` with L-BFGS-B or
            BFGS, and of `scipy.optimize.least_squares` without bounds.
        ftol: Stop after a step from loss f to f' where (f - f') / max(|f|, |f'|, 1) <= ftol, as
            L-BFGS-B does, but for steps at whose end the loss falls as steeply as at their start;
            with `least_squares` where f - f' < ftol f and the step lowers the loss by more than a
            quarter of the forecast, as `scipy.optimize.least_squares` does.
        xtol: Stop after a step s from x where |s| < xtol (xtol + |x|), Euclidean norms: the `xtol`
            of `scipy.optimize.least_squares`, and the `xrtol` of BFGS.
        least_squares: Which meaning `ftol` has.
        searches: Whether steps are made to lower the loss, so that some that do not tell that it
            cannot be lowered. Those of a rule may be too short to tell, and may climb.

    Raises:
        InputError: A tolerance is below 0.
    """

    gtol: float | None = None
    ftol: float | None = None
    xtol: float | None = None
    least_squares: bool = False
    searches: bool = True

    def __post_init__(self) -> None:
        for name in ("gtol", "ftol", "xtol"):
            value = getattr(self, name)
            given = 0.0 if value is None else real_number(name, value)
            require(given >= 0, f"{name} must be at least 0, got {value}")

    @property
    def reasons(self) -> tuple[str, ...]:
        return (
            f"its gradient is within gtol = {self.gtol}",
            f"the last step lowered the loss by no more than ftol = {self.ftol}",
            f"the last step was no longer than xtol = {self.xtol}",
            "no step lowers the loss by more than its rounding",
            f"{_LONG_STALLS} steps in a row did not lower the loss by more than its rounding; is "
            "it smooth, and its gradient right?",
            "its loss falls without bound",
            "ftol or xtol are met above the lowest loss, or without a move: it diverges or swings",
            "no step lowers the loss, though by its gradient far more is left to gain; is it "
            "smooth, and its gradient right?",
        )

    @property
    def failures(self) -> tuple[int, ...]:
        return (4, 5, 6, 7)

    def init(self, point: Point) -> Memory:
        count = torch.zeros(len(point.loss), dtype=torch.int64, device=point.loss.device)
        return {
            "first_norm": _norm(point.grad),
            # What falls by more than its own size over eps has met the rounding of its fall.
            "far": point.loss - point.loss.abs().clamp_min(1) / torch.finfo(point.loss.dtype).eps,
            "promised": torch.zeros_like(point.loss),
            "met": count - 1,
            "stalls": count,
            "rounding": rounding(point.loss),
            "lowest": point.loss,
        }

    def decide(self, point: Point, proposal: Proposal, memory: Memory) -> tuple[Tensor, Memory]:
        met, stalls, finfo = memory["met"], memory["stalls"], torch.finfo(point.loss.dtype)
        steep = ~(_norm(point.grad) <= FLAT * memory["first_norm"])
        if self.gtol is not None:
            met = met.masked_fill(point.grad.abs().amax(1) <= self.gtol, 0)
        if self.searches:
            stuck = (stalls >= _STALLS) & (proposal.gain <= memory["rounding"])
            # Also a step against a wrong gradient is shortened until it promises no more than that.
            much = memory["promised"] > finfo.eps**0.5 * point.loss.abs().clamp_min(1)
            met = met.masked_fill((met < 0) & stuck & steep & much, 7)
            met = met.masked_fill((met < 0) & stuck, 3)
            met = met.masked_fill((met < 0) & (stalls >= _LONG_STALLS), 4)
        falls = point.loss < -(finfo.max**0.5)
        falls |= (met >= 0) & steep & (point.loss < memory["far"])
        return met.masked_fill(falls, 5), memory

    def learn(
        self, before: Point, proposal: Proposal, after: Point, taken: Tensor, memory: Memory
    ) -> Memory:
        met, lowest, slack = memory["met"], memory["lowest"], memory["rounding"]
        size = torch.maximum(before.loss.abs(), after.loss.abs()).clamp_min(1)
        if self.ftol is not None:
            slack = torch.maximum(slack, self.ftol * size)
        fails = after.loss > lowest + slack
        if not self.searches:  # as where squares of its gradient overflow
            fails |= (after.params == before.params).all(1)
        if self.xtol is not None:
            step, length = (v.square().sum(1).sqrt() for v in (proposal.move, before.params))
            short = taken & (step < self.xtol * (self.xtol + length))
            met = torch.where(short, torch.where(fails, 6, 2), met)
        if self.ftol is not None:
            fall = before.loss - after.loss
            if self.least_squares:
                small = (fall < self.ftol * before.loss) & (fall > _AGREES * proposal.gain)
            else:
                small = fall.abs() <= self.ftol * size  # rules with momentum may climb
                small &= ~self._is_short(before, proposal, after)
            met = torch.where(taken & small, torch.where(fails, 6, 1), met)
        lower = after.loss < before.loss - memory["rounding"]
        promised = torch.maximum(memory["promised"], proposal.gain)
        return {
            "first_norm": memory["first_norm"],
            "far": memory["far"],
            "promised": promised.masked_fill(lower, 0),  # by the steps that have failed since
            "met": met,
            "stalls": (memory["stalls"] + 1).masked_fill(lower, 0),
            "rounding": rounding(after.loss),
            "lowest": torch.minimum(lowest, after.loss),
        }

    def _is_short(self, before: Point, proposal: Proposal, after: Point) -> Tensor:
        """Where the loss falls as steeply behind a step as before it, bool [M].

        SciPy's line searches do not end at such a step (Wolfe's second condition), so that its
        ftol never judges one.
        """
        if not self.searches:
            return torch.zeros_like(before.loss, dtype=torch.bool)
        at, behind = ((point.grad * proposal.move).sum(1) for point in (before, after))
        return behind < _STEEP * at


LBFGSB = ToleranceStop(gtol=1e-5, ftol=1e7 * 2.220446049250313e-16)
"""The tolerances of SciPy's L-BFGS-B where none are given."""
