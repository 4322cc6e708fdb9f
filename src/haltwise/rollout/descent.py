"""Safeguarded L-BFGS: what goes on, in any units, where a learned rule does not fit.

Directions are those of Nocedal 1980 (Nocedal & Wright 2006, algorithm 7.4); a step is taken only if
it lowers the loss (Armijo's condition, chapter 3), else the parabola through what is known shortens
it. A trial costs a gradient, whether taken or not.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import select_state
from haltwise.rollout.early_exit import Outcome
from haltwise.tasks.base import TaskBatch

__all__ = ["DESCENT_REASONS", "Descent", "descend"]

_MEMORY = 6  # pairs of steps and changes of the gradient
_DECREASE = 1e-4  # of the decrease forecast by the slope that a step must reach
_SHORTEST, _LONGEST = 0.1, 0.5  # times its length, by which a step that failed is shortened
_GROWTH = 4.0  # of the next step after one along which the loss is not convex
_REACH = 10.0  # times the last step: pairs of tiny steps hold more rounding than curvature
_FAILURES = 4  # steps in a row that failed, after which the memory is dropped
_PATIENCE = 3  # steps in a row that may fail to earn their price, if the next is forecast to

DESCENT_REASONS = (
    "the last steps of L-BFGS, which took over, earned less than their price",
    "the gradient is zero",
)
"""Why `descend` halts a problem, in words."""

State = dict[str, Tensor]


@final
@dataclass
class Descent:
    """B problems at the best points known, from which `descend` goes on.

    Attributes:
        params: Shape [B, D].
        loss: The loss there, shape [B].
        grad: The gradient there, shape [B, D].
        length: Of the first step, in gradients, shape [B].
        budget: Gradients each problem may still cost, int64 [B].
        patience: Steps in a row that may fail to earn their price whatever is forecast, int64 [B].
    """

    params: Tensor
    loss: Tensor
    grad: Tensor
    length: Tensor
    budget: Tensor
    patience: Tensor


@torch.no_grad()
def descend(batch: TaskBatch, begun: Descent, price: Tensor) -> tuple[Tensor, Tensor]:
    """Lower the loss of B problems until a step is not worth its price.

    Every point is evaluated by `batch.observe`; the best of them is the result, and must be noted
    there. A problem halts once 3 steps in a row have each earned less than the price
    and the next is forecast to by its slope, or `patience` have.

    Args:
        batch: B problems, deterministic.
        begun: Where they are.
        price: What a gradient must earn, shape [B].

    Returns:
        `Outcome` values, int64 [B], and the index into `DESCENT_REASONS` of what halted each, -1
        where nothing did, int64 [B].
    """
    outcome = torch.full_like(begun.budget, int(Outcome.OUT_OF_STEPS))
    reason = torch.full_like(outcome, -1)
    active = torch.arange(len(outcome), device=outcome.device)
    state = _init(begun, price)
    step = 0
    while True:
        direction = _direction(state)
        size = direction.square().sum(1).sqrt()
        direction = direction * (state["reach"] / size).clamp_max(1).nan_to_num(0).unsqueeze(1)
        slope = (direction * state["grad"]).sum(1)  # per unit of length, below 0
        is_flat = ~(slope < 0)
        poor = -0.5 * state["length"] * slope <= state["price"]
        waited = state["waited"]
        halts = ((waited >= _PATIENCE) & poor) | (waited >= state["patience"]) | is_flat
        ended = halts | (state["budget"] <= 0)
        if ended.any():
            outcome[active[halts]] = int(Outcome.HALTED)
            reason[active[halts]] = is_flat[halts].long()
            kept = (~ended).nonzero().squeeze(1)
            if len(kept) == 0:
                return outcome, reason
            batch, active, state = batch.select(kept), active[kept], select_state(state, kept)
            direction, slope = direction[kept], slope[kept]
        move = state["length"].unsqueeze(1) * direction
        loss, grad = batch.observe(state["params"] + move, step)
        state = _advance(state, move, slope, loss, grad)
        step += 1


def _init(begun: Descent, price: Tensor) -> State:
    num, dim = begun.params.shape
    pairs = begun.params.new_zeros(num, _MEMORY, dim)
    return {
        "params": begun.params,
        "loss": begun.loss,
        "grad": begun.grad,
        "budget": begun.budget,
        "patience": begun.patience,
        "price": price,
        "scale": begun.length,  # of the inverse Hessian to begin with
        "length": torch.ones_like(begun.length),
        "reach": torch.full_like(begun.length, torch.inf),  # of the next step
        "waited": torch.zeros_like(begun.budget),
        "failures": torch.zeros_like(begun.budget),
        "steps": pairs,
        "changes": pairs.clone(),
        "inverse": begun.params.new_zeros(num, _MEMORY),  # 1 / <s, y>, 0 where there is no pair
    }


def _direction(state: State) -> Tensor:
    """-H gamma by the two loops; pairs that are not there have inverse 0 and change nothing."""
    steps, changes, inverse = state["steps"], state["changes"], state["inverse"]
    vector, weights = state["grad"], []
    for k in range(_MEMORY):  # from the newest
        weight = inverse[:, k] * (steps[:, k] * vector).sum(1)
        vector = vector - weight.unsqueeze(1) * changes[:, k]
        weights.append(weight)
    vector = state["scale"].unsqueeze(1) * vector
    for k in reversed(range(_MEMORY)):
        weight = weights[k] - inverse[:, k] * (changes[:, k] * vector).sum(1)
        vector = vector + weight.unsqueeze(1) * steps[:, k]
    return -vector


def _advance(state: State, move: Tensor, slope: Tensor, loss: Tensor, grad: Tensor) -> State:
    """Take the trial where it lowers the loss, else shorten the next."""
    length, before = state["length"], state["loss"]
    finite = loss.isfinite() & grad.isfinite().all(1)
    taken = finite & (loss <= before + _DECREASE * length * slope)
    change = grad - state["grad"]
    bend = (move * change).sum(1)
    size = change.square().sum(1)
    convex = taken & (bend > torch.finfo(bend.dtype).eps * size)
    failures = torch.where(taken, 0, state["failures"] + 1)
    forgets = (failures == _FAILURES) & (state["inverse"] != 0).any(1)
    # 0 / 0 where nothing moved is discarded by `convex`.
    scale = torch.where(convex, bend / size, state["scale"])
    scale = torch.where(taken & ~convex, _GROWTH * scale, scale)
    length = torch.where(taken | forgets, 1, _shortened(length, slope, loss - before, finite))

    def pushed(name: str, value: Tensor) -> Tensor:
        kept = state[name].masked_fill(forgets.view(-1, *[1] * (state[name].ndim - 1)), 0)
        grown = torch.cat((value.unsqueeze(1), kept[:, :-1]), 1)
        return torch.where(convex.view(-1, *[1] * (kept.ndim - 1)), grown, kept)

    column = taken.unsqueeze(1)
    return {
        "params": torch.where(column, state["params"] + move, state["params"]),
        "loss": torch.where(taken, loss, before),
        "grad": torch.where(column, grad, state["grad"]),
        "budget": state["budget"] - 1,
        "patience": state["patience"],
        "price": state["price"],
        "scale": scale,
        "length": length,
        "reach": torch.where(taken, _REACH * move.square().sum(1).sqrt(), state["reach"]),
        "waited": torch.where(taken & (before - loss > state["price"]), 0, state["waited"] + 1),
        "failures": failures,
        "steps": pushed("steps", move),
        "changes": pushed("changes", change),
        "inverse": pushed("inverse", 1 / bend),
    }


def _shortened(length: Tensor, slope: Tensor, rise: Tensor, finite: Tensor) -> Tensor:
    """The minimum of the parabola through loss, slope and the loss of the step that failed."""
    found = -0.5 * length * length * slope / (rise - length * slope)
    found = torch.where(finite, found, 0).nan_to_num(0.0)
    return torch.maximum(found, _SHORTEST * length).minimum(_LONGEST * length)
