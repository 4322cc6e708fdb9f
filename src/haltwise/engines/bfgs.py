"""BFGS from the Hessian at the start: Newton's steps for the price of one Hessian.

The inverse is a matrix [D, D] of each problem, so that a step is a few operations whatever is
remembered, and losses have few parameters. A trial costs a gradient, whether taken or not.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import are_finite
from haltwise.engines.base import (
    Engine,
    EngineObservation,
    Memory,
    Point,
    Proposal,
    first_length,
    is_convex,
    is_lower,
    shortened,
)
from haltwise.engines.curvature import positive_inverse
from haltwise.tasks.base import SupportsCurvature, TaskBatch

__all__ = ["BFGS"]

_GROWTH = 4.0  # of the inverse after a step along which the loss is not convex
_REACH = 10.0  # times the last step: how long the next may be
_FAILURES = 4  # steps in a row that failed, after which the inverse begins anew
_LEAST, _MOST = 0.7, 1.4  # of its forecast that a whole step gained, if the next is believed
_AGREES = 0.3  # of the first step, by which the Hessian may err if it is believed from there on


@final
@dataclass(frozen=True)
class BFGS(Engine):
    """BFGS with a backtracking line search (Nocedal & Wright 2006, algorithm 6.1).

    The first evaluation is a loss, a gradient and a Hessian, of which negative eigenvalues count
    by their size and the first step goes at most `first_length` along each eigenvector, as that of
    L-BFGS; all others are a loss and a gradient. Where that first step is shorter than the Hessian
    asks for and finds the gradient changed as by that, the Hessian holds from there on, so that
    parameters may count in any unit; elsewhere what made the step short is all that is known. After
    a step of full length that gained about what was forecast, the forecast of the next counts as
    known, if the Hessian holds and no eigenvalue was replaced; and where a problem halts, the step
    at hand is taken if the loss behind it is no higher.
    """

    completes = True
    is_recordable = True

    def refusal(self, batch: TaskBatch) -> str | None:
        if not isinstance(batch, SupportsCurvature):
            return f"{type(batch).__name__} does not give second derivatives"
        return batch.curvature_refusal

    def observe_first(self, batch: TaskBatch) -> EngineObservation:
        assert isinstance(batch, SupportsCurvature)
        loss, grad, curvature = batch.observe_curvature(batch.start)
        # Without a sound Hessian the first step is that of L-BFGS, and no eigenvalue is known.
        sound = are_finite(curvature).flatten(1).all(1) & (curvature != 0).flatten(1).any(1)
        size = grad.square().sum(1).sqrt()
        size = torch.where(are_finite(size) & (size > 0), size, 1)
        size = size / first_length(batch.start)
        plain = torch.diag_embed(-size.unsqueeze(1).expand_as(grad))
        curvature = torch.where(sound.view(-1, 1, 1), curvature, plain)
        return EngineObservation(loss, grad, curvature)

    def init(self, point: Point, seen: EngineObservation) -> Memory:
        assert seen.curvature is not None
        found = positive_inverse(seen.curvature, seen.grad, point.params)
        inverse, units = found.bounded, found.units
        scale = (inverse.diagonal(dim1=-2, dim2=-1) / units.square()).mean(1)
        return {
            "inverse": inverse,
            "whole": found.whole,  # of which the first step tells whether it holds
            "untold": found.is_bounded,
            "units": units,  # of the parameters, in which lengths are measured
            "scale": scale,  # of the inverse where it begins anew
            "length": torch.ones_like(scale),
            "reach": torch.full_like(scale, torch.inf),  # of the next step
            "failures": torch.zeros_like(scale, dtype=torch.int64),
            "known": torch.zeros_like(found.is_inverse),
            "sure": found.is_inverse,  # whether the inverse is a guess along no direction
        }

    def propose(self, point: Point, memory: Memory) -> Proposal:
        direction = _times(memory["inverse"], point.grad).neg_()
        size = (direction / memory["units"]).square().sum(1).sqrt()
        direction = direction * (memory["reach"] / size).clamp_max(1).nan_to_num(0).unsqueeze(1)
        slope, length = (direction * point.grad).sum(1), memory["length"]
        move = length.unsqueeze(1) * direction
        short = (size > memory["reach"]) | memory["untold"]
        return Proposal(move, slope, -0.5 * length * slope, memory["known"], short)

    def learn(
        self, point: Point, proposal: Proposal, seen: EngineObservation, memory: Memory
    ) -> tuple[Tensor, Memory]:
        length, move, units = memory["length"], proposal.move, memory["units"]
        finite = seen.is_finite()
        taken = finite & is_lower(point, seen, length, proposal.slope)
        change, fall = seen.grad - point.grad, point.loss - seen.loss
        bend = (move * change).sum(1)
        size, way = (change * units).square().sum(1), (move / units).square().sum(1)
        convex = taken & is_convex(bend, way, size)
        failures = (memory["failures"] + 1).masked_fill(taken, 0)
        forgets = failures == _FAILURES
        tells = memory["untold"] & taken
        wrong = ((_times(memory["whole"], change) - move) / units).square().sum(1)
        holds = convex & (wrong < _AGREES**2 * way)
        learned = torch.where((tells & holds).view(-1, 1, 1), memory["whole"], memory["inverse"])
        sure = memory["sure"] & (holds | ~tells) & ~forgets
        believed = (fall > _LEAST * proposal.gain) & (fall < _MOST * proposal.gain)
        scale = torch.where(convex, bend / size, memory["scale"])
        # Of two numbers alone the default dtype would decide.
        growth = torch.where(taken, _GROWTH, torch.ones_like(length))
        grown = growth.view(-1, 1, 1) * memory["inverse"]
        updated = _updated(learned, move, change, bend)
        anew = torch.diag_embed(scale.unsqueeze(1) * units.square())
        inverse = torch.where(convex.view(-1, 1, 1), updated, grown)
        shorter = shortened(length, proposal.slope, -fall, finite)
        return taken, {
            "inverse": torch.where(forgets.view(-1, 1, 1), anew, inverse),
            "whole": memory["whole"],
            "untold": memory["untold"] & ~taken & ~forgets,
            "units": units,
            "scale": scale,
            "length": torch.where(taken | forgets, 1, shorter),
            "reach": torch.where(taken, _REACH * way.sqrt(), memory["reach"]),
            "failures": failures,
            "known": convex & (length == 1) & believed & sure,
            "sure": sure,
        }


def _updated(inverse: Tensor, move: Tensor, change: Tensor, bend: Tensor) -> Tensor:
    """The nearest inverse that maps the change of the gradient to the move: algorithm 6.1."""
    through = _times(inverse, change)
    share = 0.5 * (1 + (change * through).sum(1) / bend)
    other = (share.unsqueeze(1) * move - through) / bend.unsqueeze(1)
    left, right = torch.stack((move, other), 2), torch.stack((other, move), 1)
    return torch.baddbmm(inverse, left, right)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.bmm(matrix, vector.unsqueeze(2)).squeeze(2)


ENGINES = {"bfgs": BFGS()}
