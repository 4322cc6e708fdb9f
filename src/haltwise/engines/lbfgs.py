"""Safeguarded L-BFGS: directions from the last steps and the changes of the gradient along them.

Directions are those of Nocedal 1980 (Nocedal & Wright 2006, algorithm 7.4); a step is taken only if
it lowers the loss (Armijo's condition, chapter 3), else the parabola through what is known shortens
it. A trial costs a gradient, whether taken or not.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import along
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
from haltwise.processes.descent import direction_of_pairs
from haltwise.rollout.ledger import MEMORY

__all__ = ["LBFGS", "forecast_gain"]

_GROWTH = 4.0  # of the next step after one along which the loss is not convex
_REACH = 10.0  # times the last step: pairs of tiny steps hold more rounding than curvature
_FAILURES = 4  # steps in a row that failed, after which the memory is dropped


@final
@dataclass(frozen=True)
class LBFGS(Engine):
    """L-BFGS with six pairs and a backtracking line search.

    The first step has a length of 1, as that of SciPy's L-BFGS-B, and more only where parameters
    are so large that such a step would be lost in their rounding.
    """

    is_recordable = True

    def init(self, point: Point, seen: EngineObservation) -> Memory:
        size = point.grad.square().sum(1).sqrt()
        return self.init_scaled(point, torch.where(size > 0, first_length(point.params) / size, 1))

    def init_scaled(self, point: Point, scale: Tensor) -> Memory:
        """The memory where the first step is to be of `scale` gradients, shape [M]."""
        num, dim = point.params.shape
        pairs = point.params.new_zeros(num, MEMORY, dim)
        return {
            "scale": scale,  # of the inverse Hessian to begin with
            "length": torch.ones_like(scale),
            "reach": torch.full_like(scale, torch.inf),  # of the next step
            "failures": torch.zeros(num, dtype=torch.int64, device=scale.device),
            "steps": pairs,
            "changes": pairs.clone(),
            "inverse": point.params.new_zeros(num, MEMORY),  # 1 / <s, y>, 0 without a pair
        }

    def propose(self, point: Point, memory: Memory) -> Proposal:
        direction = _direction(point.grad, memory)
        size = direction.square().sum(1).sqrt()
        direction = direction * (memory["reach"] / size).clamp_max(1).nan_to_num(0).unsqueeze(1)
        slope, length = (direction * point.grad).sum(1), memory["length"]
        move = length.unsqueeze(1) * direction
        short = (size > memory["reach"]) | (memory["inverse"] == 0).all(1)
        return Proposal(move, slope, -0.5 * length * slope, torch.zeros_like(short), short)

    def learn(
        self, point: Point, proposal: Proposal, seen: EngineObservation, memory: Memory
    ) -> tuple[Tensor, Memory]:
        length, move = memory["length"], proposal.move
        finite = seen.is_finite()
        taken = finite & is_lower(point, seen, length, proposal.slope)
        change = seen.grad - point.grad
        bend, size, way = (move * change).sum(1), change.square().sum(1), move.square().sum(1)
        convex = taken & is_convex(bend, way, size)
        failures = torch.where(taken, 0, memory["failures"] + 1)
        forgets = (failures == _FAILURES) & (memory["inverse"] != 0).any(1)
        # 0 / 0 where nothing moved is discarded by `convex`.
        scale = torch.where(convex, bend / size, memory["scale"])
        scale = torch.where(taken & ~convex, _GROWTH * scale, scale)
        shorter = shortened(length, proposal.slope, seen.loss - point.loss, finite)

        def pushed(name: str, value: Tensor) -> Tensor:
            kept = memory[name]
            # What is kept is the most that there is, and is gone through once.
            grown = torch.empty_like(kept)
            torch.where(along(convex, value), value, kept[:, 0], out=grown[:, 0])
            torch.where(along(convex, kept), kept[:, :-1], kept[:, 1:], out=grown[:, 1:])
            return grown.masked_fill_(along(forgets, kept), 0)  # it pushed nothing

        return taken, {
            "scale": scale,
            "length": torch.where(taken | forgets, 1, shorter),
            "reach": torch.where(taken, _REACH * way.sqrt(), memory["reach"]),
            "failures": failures,
            "steps": pushed("steps", move),
            "changes": pushed("changes", change),
            "inverse": pushed("inverse", 1 / bend),
        }


def _direction(grad: Tensor, memory: Memory) -> Tensor:
    pairs = (memory[name] for name in ("scale", "inverse", "steps", "changes"))
    return direction_of_pairs(grad, *pairs)


def forecast_gain(grad: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """What a step of L-BFGS is forecast to gain by the curvature seen, 1/2 gamma' H gamma.

    Of a quadratic with conjugate steps in all directions, it is all that is left to gain.

    Args:
        grad: gamma, shape [B, D].
        steps: Steps, the newest first, shape [B, `MEMORY`, D]; zero where there was none.
        changes: Changes of the gradient along them, in the same shape.

    Returns:
        Shape [B]; infinite where the loss is convex along none of the steps.

    Examples:
        >>> hessian = torch.diag(torch.tensor([1.0, 10.0]))
        >>> steps = torch.zeros(1, MEMORY, 2)
        >>> steps[0, :2] = torch.tensor([[0.3, 0.0], [0.0, 0.4]])
        >>> grad = torch.tensor([[2.0, 10.0]])
        >>> forecast_gain(grad, steps, steps @ hessian)  # 2 * 2 / 2 + 10 * 1 / 2
        tensor([7.])
    """
    bend, size = (steps * changes).sum(-1), changes.square().sum(-1)
    convex = is_convex(bend, steps.square().sum(-1), size) & bend.isfinite() & size.isfinite()
    newest = convex.to(torch.uint8).argmax(1, keepdim=True)
    scale = torch.where(convex, bend / size, 0).gather(1, newest).squeeze(1)
    memory = {
        "scale": scale,
        "inverse": torch.where(convex, 1 / bend, 0),
        "steps": torch.where(convex.unsqueeze(2), steps, 0),
        "changes": torch.where(convex.unsqueeze(2), changes, 0),
    }
    gain = -0.5 * (_direction(grad, memory) * grad).sum(1)
    return torch.where(convex.any(1), gain, torch.inf)


ENGINES = {"lbfgs": LBFGS()}
