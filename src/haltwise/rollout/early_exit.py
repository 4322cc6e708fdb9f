"""Solving for real: problems that halt leave the batch, so what they save is not computed."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import log_rms
from haltwise.stop_rules.accounts import StopPolicy, ReturnedIterate, takes_update
from haltwise.stop_rules import StepObservation
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.update_rules import State, select_state
from haltwise.tasks import TaskBatch

__all__ = ["Execution", "Outcome", "execute"]


@final
class Outcome(IntEnum):
    """How a problem ended."""

    HALTED = 0
    """The stop rule ended it; see `Execution.reason`."""
    OUT_OF_STEPS = 1
    """It reached the last step allowed."""
    NONFINITE = 2
    """Its loss, gradient or update was not finite; its parameters are the last finite ones."""


@final
@dataclass(frozen=True)
class Execution:
    """What became of B problems.

    Attributes:
        params: What is returned of each problem, shape [B, D].
        num_updates: The s of the theta_s returned, int64 [B].
        num_gradients: Gradients evaluated, int64 [B].
        outcome: `Outcome` values, int64 [B].
        reason: Index into `reasons`: why the rule stopped it, -1 where it did not; int64 [B].
        reasons: Why the rule may stop a problem, in words.
    """

    params: Tensor
    num_updates: Tensor
    num_gradients: Tensor
    outcome: Tensor
    reason: Tensor
    reasons: tuple[str, ...]


@torch.no_grad()
def execute(
    optimizer: OptimizerModel,
    batch: TaskBatch,
    policy: StopPolicy,
    price: Tensor,
    max_steps: int,
    *,
    memory: State | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Execution:
    """Run every problem until its stop rule ends it, evaluating nothing for those that have ended.

    Args:
        optimizer: What moves the parameters.
        batch: B problems.
        policy: When to stop, decided at every step with the gradient there in hand, and what to
            return then; see `OptimizerModel.policy`. A problem out of steps ends with its last
            update applied, or, with `ReturnedIterate.BEST`, at the best parameters it observed.
        price: c, shape [B].
        max_steps: Gradients a problem may cost at most, at least 1.
        memory: Of the stop rule, for a part of a larger batch; its own beginning if None.
        watch: Told at every step which problems run (int64 [K]) and their observed losses [K].

    Returns:
        One outcome per problem; nothing is raised for a problem that goes wrong.
    """
    stop, recall = policy
    num_problems = batch.num_problems
    active = torch.arange(num_problems, device=batch.start.device)
    params, state = batch.start, optimizer.init(batch.start)
    memory = stop.init(num_problems, batch.start) if memory is None else memory
    final_params, lowest = batch.start.clone(), batch.start.new_full((num_problems,), torch.inf)
    keeps_best = recall is ReturnedIterate.BEST
    num_updates = torch.full_like(active, 0 if keeps_best else max_steps)
    num_gradients = torch.full_like(active, max_steps)
    outcome = torch.full_like(active, Outcome.OUT_OF_STEPS)
    reason = torch.full_like(active, -1)
    for step in range(max_steps):
        loss, grad = batch.observe(params, step)
        if watch is not None:
            watch(active, loss)
        taken = optimizer.step(step, loss, grad, price, state, in_place=True)
        moved = params + taken.update
        finite = loss.isfinite() & grad.isfinite().all(1) & moved.isfinite().all(1)
        halts, memory = stop.step(StepObservation(step, loss, log_rms(grad), *taken.halting), memory)
        ended = halts | ~finite
        if keeps_best:
            better = loss < lowest[active]
            index = active[better]
            final_params[index], lowest[index] = params[better], loss[better]
            num_updates[index] = step
        if ended.any():
            index = active[ended]
            if not keeps_best:
                takes = finite & takes_update(recall, taken.halting.hold_logits, finite)
                final_params[index] = torch.where(takes.unsqueeze(1), moved, params)[ended]
                num_updates[index] = step + takes[ended].long()
            num_gradients[index] = step + 1
            outcome[index] = torch.where(finite[ended], int(Outcome.HALTED), int(Outcome.NONFINITE))
            reason[index] = torch.where(finite, stop.why(halts, memory), -1)[ended]
            kept = (~ended).nonzero().squeeze(1)
            if len(kept) == 0:
                break
            active, price, batch = active[kept], price[kept], batch.select(kept)
            moved, memory = moved[kept], select_state(memory, kept)
            state = select_state(taken.state, kept)
        else:
            state = taken.state
        params = moved
    else:
        if not keeps_best:
            final_params[active] = params
    return Execution(final_params, num_updates, num_gradients, outcome, reason, stop.reasons)
