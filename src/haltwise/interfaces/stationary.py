"""Problems that begin where the gradient is zero, though the loss falls from there."""

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise._core.tensors import are_finite
from haltwise.engines.base import rounding
from haltwise.interfaces.engine_run import cached_chunk
from haltwise.tasks.base import TaskBatch

__all__ = ["NO_MINIMUM", "falls_from"]

NO_MINIMUM = (
    "the gradient is zero where it starts, but that is a maximum or a saddle, from which the loss "
    "falls; start elsewhere"
)
_DIRECTIONS = 8  # of which about half descend from a saddle


def falls_from(problem: TaskBatch, params: Tensor, loss: Tensor, asked: Tensor) -> Tensor:
    """Where the loss falls along one of some random directions, bool [B].

    Of a point whose gradient is zero no engine can tell whether it is a minimum. It takes eight
    losses, not counted, of those that are asked for; what is flat nearby falls nowhere.

    Args:
        problem: B problems.
        params: Where they are, in coordinates, shape [B, D].
        loss: The loss there, shape [B].
        asked: Of which problems it is to be told, bool [B].
    """
    falls = torch.zeros_like(asked)
    if problem.stochastic or not asked.any():
        return falls
    limit = loss - rounding(loss)
    for rows in asked.nonzero().squeeze(1).split(cached_chunk(problem)):
        part, here = problem.select(rows), params[rows]
        length = torch.finfo(here.dtype).eps ** 0.25 * torch.where(here == 0, 1, here.abs())
        draw = stream(0, "stationary")
        for _ in range(_DIRECTIONS):
            move = torch.randn(here.shape[1], generator=draw, dtype=torch.float64, device="cpu")
            with torch.enable_grad():  # a loss may differentiate inside
                there = part.observe_loss(here + length * move.to(here), 0).detach()
            falls[rows] |= are_finite(there) & (there < limit[rows])
    return falls
