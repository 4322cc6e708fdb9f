"""Problems that have stopped so near to a bound that nothing is felt there."""

import math

import torch
from torch import Tensor

from haltwise.interfaces.engine_run import cached_chunk
from haltwise.interfaces.own_form import coordinates_of
from haltwise.tasks.base import TaskBatch, ask
from haltwise.tasks.bounds import OpenInterval

__all__ = ["STUCK", "stuck_at_bounds"]

STUCK = (
    "a parameter is so near to its bound that the loss hardly changes there, though it falls "
    "farther inside; start elsewhere inside the bounds, or by another method"
)
_SOON = 3  # evaluations, after which a problem has left its start
_NEAR = 4.0  # from the middle of two bounds, or from the start towards one
_FELT = 8.0  # likewise: at the most, for a slope to be told from rounding
_CONCAVE = 1.5  # times the slope before a step of length 1; where nothing is felt, almost e


def stuck_at_bounds(problem: TaskBatch, params: Tensor, num_gradients: Tensor) -> Tensor:
    """Where a problem has stopped though its loss falls faster and faster inside, bool [B].

    In its free coordinate a parameter at its bound has no slope, whatever it has in its own. Of one
    that belongs there the loss falls towards the bound; so a problem is stuck where it falls away
    from it, and far more steeply behind a step of length 1: at a minimum it falls less steeply
    there. And the loss must be lower behind that step. It takes two gradients, not counted, of
    those that have stopped after three or came near to a bound.

    Args:
        problem: B problems.
        params: Where they ended, in coordinates, shape [B, D].
        num_gradients: Evaluations, int64 [B].
    """
    stuck = torch.zeros_like(num_gradients, dtype=torch.bool)
    coordinates = coordinates_of(problem)
    if coordinates is None or not any(coordinates.bounded) or problem.stochastic:
        return stuck
    parts = zip(
        coordinates.bounded_parts(params), coordinates.bounded_parts(problem.start), strict=True
    )
    sides = [_inward(bounds, free, start) for (bounds, free), (_, start) in parts]
    inward, depth = (torch.cat(values, 1) for values in zip(*sides, strict=True))
    rows = ((num_gradients <= _SOON) | (depth > _NEAR).any(1)).nonzero().squeeze(1)
    if len(rows) == 0:
        return stuck
    for some in rows.split(cached_chunk(problem)):
        part, here = problem.select(some), params[some]
        stuck[some] = _falls_inward(part, here, inward[some], depth[some])
    return stuck


def _falls_inward(part: TaskBatch, here: Tensor, inward: Tensor, depth: Tensor) -> Tensor:
    """Where the loss falls away from the nearer bounds, and ever more steeply, bool [M]."""
    at = ask(part.observe, here, 0)
    slope = -inward * at.grad
    inward = inward.masked_fill(slope < 0, 0)
    step = inward * (depth - _FELT).clamp_min(1)  # farther in, the slope may be 0
    there = ask(part.observe, here + step, 0)
    slope_there = -inward * there.grad
    steeper = ((slope_there > 0) & (slope_there > _CONCAVE * slope)).any(1)
    # All go at once: one alone may be steeper for the others' steps, but then the loss is higher.
    return steeper & (there.loss < at.loss)


def _inward(bounds: OpenInterval | None, free: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of a step away from the nearer bound, and how far free coordinates went there."""
    if bounds is None:
        return torch.zeros_like(free), torch.zeros_like(free)
    if math.isinf(bounds.low) or math.isinf(bounds.high):
        inward = torch.full_like(free, -1.0 if math.isinf(bounds.low) else 1.0)
        return inward, inward * (start - free)
    return -free.sign(), free.abs()
