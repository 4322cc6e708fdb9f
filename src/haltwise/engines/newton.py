"""Newton's method, and IRLS where the curvature given is that of iterated least squares."""

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
    is_lower,
    shortened,
)
from haltwise.engines.curvature import newton_direction
from haltwise.tasks.base import SupportsCurvature, TaskBatch

__all__ = ["Newton"]

_GROWTH = 2.0


@final
@dataclass(frozen=True)
class Newton(Engine):
    """Newton's method with a backtracking line search (Nocedal & Wright 2006, algorithm 3.2).

    A step is forecast to gain half of Newton's decrement, g^T H^-1 g / 2. Where a problem halts,
    the step at hand is taken if the loss behind it is no higher: near a minimum it squares the
    error. An evaluation is a loss, a gradient and a matrix of curvature.
    """

    completes = True

    def refusal(self, batch: TaskBatch) -> str | None:
        if not isinstance(batch, SupportsCurvature):
            return f"{type(batch).__name__} does not give second derivatives"
        return batch.curvature_refusal

    def observe(self, batch: TaskBatch, params: Tensor) -> EngineObservation:
        assert isinstance(batch, SupportsCurvature)
        return EngineObservation(*batch.observe_curvature(params))

    def init(self, point: Point, seen: EngineObservation) -> Memory:
        assert seen.curvature is not None
        direction, definite = newton_direction(seen.curvature, seen.grad, point.params)
        length = torch.ones_like(seen.loss)
        return {"direction": direction, "definite": definite, "length": length}

    def propose(self, point: Point, memory: Memory) -> Proposal:
        direction = memory["direction"]
        slope = (direction * point.grad).sum(1)
        move = memory["length"].unsqueeze(1) * direction
        return Proposal(move, slope, -0.5 * slope, memory["definite"])

    def learn(
        self, point: Point, proposal: Proposal, seen: EngineObservation, memory: Memory
    ) -> tuple[Tensor, Memory]:
        assert seen.curvature is not None
        length = memory["length"]
        trial = point.params + proposal.move
        direction, definite = newton_direction(seen.curvature, seen.grad, trial)
        finite = are_finite(seen.loss) & are_finite(direction).all(1)  # or all else is not
        taken = finite & is_lower(point, seen, length, proposal.slope)
        shorter = shortened(length, proposal.slope, seen.loss - point.loss, finite)
        # Where the loss is concave the best length is unknown, if there is one.
        longer = (_GROWTH * length.clamp_min(1)).masked_fill(definite, 1)
        return taken, {
            "direction": torch.where(taken.unsqueeze(1), direction, memory["direction"]),
            "definite": torch.where(taken, definite, memory["definite"]),
            "length": torch.where(taken, longer, shorter),
        }


ENGINES = {"newton": Newton()}
