"""Gauss-Newton for sums of squares, damped after Levenberg and Marquardt where it must be."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise.engines.base import Engine, EngineObservation, Memory, Point, Proposal, is_lower
from haltwise.engines.curvature import newton_direction
from haltwise.tasks.base import SupportsResiduals, TaskBatch
from haltwise.tasks.function import squares

__all__ = ["GaussNewton"]

_FIRST = 1e-3  # damping after the first step that failed
_LEAST = 1e-7  # damping below which there is none
_FALL = 10.0  # by which damping falls after a step that went as forecast
_BEYOND = 20.0  # length of a step in one coordinate by J alone, of which J says nothing
_UNFELT = 2e-16  # of J^T J before a step: the rounding of float64
_WELL, _POORLY = 0.75, 0.25  # shares of the forecast that a step gained


@final
@dataclass(frozen=True)
class GaussNewton(Engine):
    """Gauss-Newton steps, damped where they fail (Levenberg 1944, Marquardt 1963, Moré 1978).

    (J^T J + lambda diag) s = -J^T r, with the largest diagonal seen. lambda is 0 until a step
    fails; it then grows as Nielsen 1999 has it, and falls where steps gain what was forecast. Where
    it has fallen to 0 and a step fails, it goes on from where it was cut: a fit may need less.
    At its bound a parameter has no J in the coordinate that stands for it. Where its step would be
    beyond all bounds, so that others could make none, J^T J is told how the coordinate bends.
    A step behind which a parameter is no longer felt is refused, unless it gained what was
    forecast: it leads to a plateau, from where no way leads on.
    An evaluation is residuals and their Jacobian.
    """

    passes_over = True
    completes = True

    def refusal(self, batch: TaskBatch) -> str | None:
        if not isinstance(batch, SupportsResiduals):
            return f"{type(batch).__name__} does not give residuals"
        return batch.residuals_refusal

    def observe(self, batch: TaskBatch, params: Tensor) -> EngineObservation:
        assert isinstance(batch, SupportsResiduals)
        loss, grad, curvature = squares(*batch.observe_residuals(params))
        bend = batch.bend(params)
        if bend is not None:
            beyond = grad.abs() > _BEYOND * curvature.diagonal(dim1=-2, dim2=-1)
            convex = (bend * grad).clamp_min(0) * beyond
            curvature = curvature + torch.diag_embed(convex)
        return EngineObservation(loss, grad, curvature)

    def init(self, point: Point, seen: EngineObservation) -> Memory:
        assert seen.curvature is not None
        none = torch.zeros_like(seen.loss)
        return {
            "normal": seen.curvature,  # J^T J, and how coordinates bend
            "scale": _diagonal(seen.curvature),
            "damping": none,
            "first": none + _FIRST,  # damping after an undamped step that fails
            "growth": none + 2,
        }

    def propose(self, point: Point, memory: Memory) -> Proposal:
        normal, damping = memory["normal"], memory["damping"]
        added = damping.unsqueeze(1) * memory["scale"]
        # Where a parameter is hardly felt, a whole step would lead to where it is not felt at all.
        flat = torch.finfo(normal.dtype).eps
        damped = normal + torch.diag_embed(added)
        move, definite = newton_direction(damped, point.grad, point.params, flat=flat)
        slope = (move * point.grad).sum(1)
        # -g s - s^T J^T J s / 2, where (J^T J + added) s = -g
        gain = 0.5 * ((added * move.square()).sum(1) - slope)
        return Proposal(move, slope, gain, definite & (damping == 0))

    def learn(
        self, point: Point, proposal: Proposal, seen: EngineObservation, memory: Memory
    ) -> tuple[Tensor, Memory]:
        assert seen.curvature is not None
        damping, growth = memory["damping"], memory["growth"]
        share = (point.loss - seen.loss) / proposal.gain
        before, behind = (
            matrix.diagonal(dim1=-2, dim2=-1) for matrix in (memory["normal"], seen.curvature)
        )
        strays = (behind < _UNFELT * before).any(1) & ~(share > _WELL)
        lower = is_lower(point, seen, torch.ones_like(seen.loss), proposal.slope)
        taken = seen.is_finite() & lower & ~strays
        calmer = torch.where(share > _WELL, damping / _FALL, damping)
        felt = calmer.clamp_min(torch.finfo(damping.dtype).eps)
        first = torch.where(taken & (damping > 0), felt, memory["first"])
        calmer = torch.where(calmer < _LEAST, 0, calmer)
        calmer = torch.where(share < _POORLY, (2 * damping).clamp_min(_FIRST), calmer)
        stiffer = torch.where(damping > 0, damping * growth, memory["first"])
        wide = taken.view(-1, 1, 1)
        scale = torch.maximum(memory["scale"], _diagonal(seen.curvature))
        return taken, {
            "normal": torch.where(wide, seen.curvature, memory["normal"]),
            "scale": torch.where(taken.unsqueeze(1), scale, memory["scale"]),
            "damping": torch.where(taken, calmer, stiffer),
            "first": first,
            "growth": torch.where(taken, 2, 2 * growth),
        }


def _diagonal(normal: Tensor) -> Tensor:
    """The diagonal, 1 where it is 0, so that any damping is felt."""
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    return torch.where(diagonal > 0, diagonal, 1)


ENGINES = {"gauss-newton": GaussNewton()}
