"""The contract of an engine: a way to lower the losses of B problems side by side."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from haltwise._core.tensors import are_finite
from haltwise.tasks.base import TaskBatch, ask

__all__ = [
    "Engine",
    "EngineObservation",
    "Memory",
    "Point",
    "Proposal",
    "first_length",
    "is_convex",
    "is_lower",
    "rounding",
    "shortened",
    "within",
]

Memory = dict[str, Tensor]
"""What an engine or a stop remembers, each tensor with the problems along dimension 0."""

_DECREASE = 1e-4  # of the decrease forecast by the slope that a step must reach
_SHORTEST, _LONGEST = 0.1, 0.5  # times its length, by which a step that failed is shortened
_ROUNDING = 16  # units in the last place by which sums of some hundred terms differ


class Point(NamedTuple):
    """Where M problems are.

    Attributes:
        params: Shape [M, D].
        loss: The loss there, shape [M].
        grad: The gradient there, shape [M, D].
    """

    params: Tensor
    loss: Tensor
    grad: Tensor

    def moved(self, params: Tensor, seen: "EngineObservation", taken: Tensor) -> "Point":
        """Where they are after a step to other parameters [M, D], taken by those in bool [M]."""
        wide = taken.unsqueeze(1)
        return Point(
            torch.where(wide, params, self.params),
            torch.where(taken, seen.loss, self.loss),
            torch.where(wide, seen.grad, self.grad),
        )


class EngineObservation(NamedTuple):
    """What is evaluated of M problems at once: one unit of cost.

    Attributes:
        loss: Shape [M].
        grad: Shape [M, D].
        curvature: Where the engine asks for it, shape [M, D, D].
    """

    loss: Tensor
    grad: Tensor
    curvature: Tensor | None = None

    def is_finite(self) -> Tensor:
        """Which problems have a finite loss and gradient, bool [M]."""
        return are_finite(self.loss) & are_finite(self.grad).all(1)


class Proposal(NamedTuple):
    """The next step of M problems.

    Attributes:
        move: To be added to the parameters, shape [M, D].
        slope: The gradient along the direction, per unit of the step's length; below 0 but where
            there is nothing to gain, shape [M].
        gain: By how much the loss is forecast to fall, shape [M].
        is_known: Where the forecast is that of the curvature at this very point, undamped, bool
            [M]. Others need to be confirmed by what steps really earn.
        is_short: Where the step is shorter than the curvature seen asks for, or none was seen, so
            that the forecast does not tell what is left to gain, bool [M]; nowhere if None.
    """

    move: Tensor
    slope: Tensor
    gain: Tensor
    is_known: Tensor
    is_short: Tensor | None = None


def within(reach: Tensor | None, point: Point, proposal: Proposal) -> Proposal:
    """The same step, shortened to what every coordinate may go, `TaskBatch.reach` [D].

    Its forecast is that of the same parabola along the step, which is not known from there on.
    """
    short = proposal.is_short
    short = torch.zeros_like(proposal.is_known) if short is None else short
    if reach is None:
        return proposal._replace(is_short=short)
    share = (reach / proposal.move.abs()).amin(1)
    share = torch.where(share < 1, share, 1)  # of NaN, too
    slope = (proposal.move * point.grad).sum(1)
    return Proposal(
        share.unsqueeze(1) * proposal.move,
        share * proposal.slope,
        share * (share * (slope + proposal.gain) - slope),
        proposal.is_known & (share == 1),
        short | (share != 1),
    )


class Engine(ABC):
    """A way to lower losses: frozen settings, pure functions of points and memories.

    The host (`haltwise.engines.run`) evaluates, decides when each problem stops, counts, and lets
    those that have halted leave. An engine proposes steps and learns from what they found.
    Problems never see each other, and a step that is not finite is never taken.
    `haltwise.testing.check_engine` checks the contract.
    """

    is_monotone: ClassVar[bool] = True
    """Whether a step is taken only if it lowers the loss, but for rounding."""
    passes_over: ClassVar[bool] = False
    """Whether a step may be refused though it lowers the loss; the host remembers where it led."""
    completes: ClassVar[bool] = False
    """Whether the step at hand where a problem halts is so good that it is taken on the forecast,
    if the loss alone confirms it."""

    is_recordable: ClassVar[bool] = False
    """Whether `propose` and `learn` copy no values to the host."""

    def refusal(self, batch: TaskBatch) -> str | None:
        """Why this engine cannot work on a batch, in a clause; None if it can."""
        del batch
        return None

    def observe(self, batch: TaskBatch, params: Tensor) -> EngineObservation:
        """Evaluate a batch of M problems at parameters [M, D]."""
        return EngineObservation(*ask(batch.observe, params, 0))

    def observe_first(self, batch: TaskBatch) -> EngineObservation:
        """Evaluate a batch at its start, for `init`."""
        return self.observe(batch, batch.start)

    @abstractmethod
    def init(self, point: Point, seen: EngineObservation) -> Memory:
        """The memory at the first point."""

    @abstractmethod
    def propose(self, point: Point, memory: Memory) -> Proposal:
        """The next step from a point."""

    @abstractmethod
    def learn(
        self, point: Point, proposal: Proposal, seen: EngineObservation, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Judge a step by what was evaluated behind it.

        Args:
            point: Where it began.
            proposal: The step.
            seen: What was found.
            memory: Before the step; left untouched.

        Returns:
            Where the step is taken, bool [M], and the memory for the next.
        """


def rounding(loss: Tensor) -> Tensor:
    """By how much a loss may differ from itself, computed in another order."""
    return _ROUNDING * torch.finfo(loss.dtype).eps * loss.abs()


def first_length(params: Tensor) -> Tensor:
    """The length of a first step, shape [M]: 1, as in SciPy, or what tells at such parameters."""
    return (math.sqrt(torch.finfo(params.dtype).eps) * params.abs().amax(1)).clamp_min(1)


def is_lower(point: Point, seen: EngineObservation, length: Tensor, slope: Tensor) -> Tensor:
    """Where a step of so many lengths lowers the loss enough (Armijo's condition), bool [M].

    Where the loss is the same but for rounding, it is the gradient that must be smaller.
    """
    enough = seen.loss <= point.loss + _DECREASE * length * slope
    same = seen.loss <= point.loss + rounding(point.loss)
    smaller = seen.grad.square().sum(1) < point.grad.square().sum(1)
    return enough | (same & smaller)


def is_convex(bend: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """Where the curvature along a step is told from rounding, bool; in any unit of the loss.

    Args:
        bend: <s, y>, of the step and the change of the gradient along it, shape [...].
        step: |s|^2, in the same shape.
        change: |y|^2.
    """
    return bend > torch.finfo(bend.dtype).eps * step.sqrt() * change.sqrt()


def shortened(length: Tensor, slope: Tensor, rise: Tensor, finite: Tensor) -> Tensor:
    """The minimum of the parabola through loss, slope and the loss of the step that failed."""
    found = -0.5 * length * length * slope / (rise - length * slope)
    found = torch.where(finite, found, 0).nan_to_num(0.0)
    return torch.maximum(found, _SHORTEST * length).minimum(_LONGEST * length)
