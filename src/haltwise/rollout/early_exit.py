"""Early exit: items that halt leave the batch, so what they save is not computed."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import final

import torch
from torch import Tensor

from haltwise._core.settings import whole_number
from haltwise._core.tensors import select_state, undisturbed
from haltwise.halting.session import HaltingSession
from haltwise.processes.base import Process
from haltwise.processes.observation import StepObservation
from haltwise.stop_rules import ReturnedIterate

__all__ = ["Execution", "Outcome", "Watch", "run_until_halted"]


@final
class Outcome(IntEnum):
    """The way an item ended."""

    HALTED = 0
    """The stop rule ended it; see `Execution.reason`."""
    OUT_OF_STEPS = 1
    """It reached the last step allowed."""
    NONFINITE = 2
    """Its loss, gradient or next iterate was not finite; the last finite one is returned."""
    TAKEN = 3
    """A watch took it away, to go on with it in another way."""


@final
@dataclass(frozen=True)
class Execution:
    """Results of B items.

    Attributes:
        result: What is returned of each item, shape [B, ...].
        num_updates: The s of the theta_s returned, int64 [B].
        num_gradients: Steps evaluated, each with a gradient where there are any, int64 [B].
        outcome: `Outcome` values, int64 [B].
        reason: Index into `reasons`: why the rule stopped it, -1 where it did not; int64 [B].
        reasons: Why the rule may stop an item, in words.
    """

    result: Tensor
    num_updates: Tensor
    num_gradients: Tensor
    outcome: Tensor
    reason: Tensor
    reasons: tuple[str, ...]


Watch = Callable[[Tensor, StepObservation], Tensor | None]
"""Told at every step which items run (int64 [K]) and what was observed of them; returns which of
them are to leave (bool [K]), or None."""


@undisturbed()
def run_until_halted(
    process: Process,
    session: HaltingSession,
    max_steps: int,
    *,
    watch: Watch | None = None,
) -> Execution:
    """Run every item until its session stops it, evaluating nothing for those that have ended.

    An item out of steps ends with its last update applied, or, with `ReturnedIterate.BEST`, at the
    best iterate it observed. Nothing is raised for an item that goes wrong.

    Args:
        process: B items.
        session: When to stop and what to return.
        max_steps: Steps an item may cost at most, at least 1.
        watch: Told of every step. Items that it takes away end as TAKEN, whatever the session says.

    Raises:
        InputError: `max_steps` is below 1.
    """
    max_steps = whole_number("max_steps", max_steps)
    state = process.init()
    current = process.result(state)
    active = torch.arange(process.num_items, device=current.device)
    final_result = current.clone()
    lowest: Tensor | None = None
    keeps_best = session.policy.returns is ReturnedIterate.BEST
    num_updates = torch.full_like(active, 0 if keeps_best else max_steps)
    num_gradients = torch.full_like(active, max_steps)
    outcome = torch.full_like(active, Outcome.OUT_OF_STEPS)
    reason = torch.full_like(active, -1)
    for step in range(max_steps):
        observation, after = process.step(step, state)
        loss = observation.loss
        taken = None if watch is None else watch(active, observation)
        moved = process.result(after)
        finite = _are_finite(observation, moved)
        decision = session.observe(observation)
        ended = decision.stop | ~finite
        if taken is not None:
            ended |= taken
        if keeps_best:
            if lowest is None:
                lowest = torch.full_like(loss, torch.inf)
            better = loss < lowest[active]
            index = active[better]
            final_result[index], lowest[index] = current[better], loss[better]
            num_updates[index] = step
        if ended.any():
            index = active[ended]
            if not keeps_best:
                takes = finite & decision.takes_update
                chosen = takes.view(-1, *[1] * (moved.ndim - 1))
                final_result[index] = torch.where(chosen, moved, current)[ended]
                num_updates[index] = step + takes[ended].long()
            num_gradients[index] = step + 1
            outcome[index] = torch.where(finite[ended], int(Outcome.HALTED), int(Outcome.NONFINITE))
            reason[index] = torch.where(finite, decision.reason, -1)[ended]
            if taken is not None:
                outcome[active[taken]], reason[active[taken]] = int(Outcome.TAKEN), -1
            kept = (~ended).nonzero().squeeze(1)
            if len(kept) == 0:
                break
            active, process = active[kept], process.select(kept)
            after = select_state(after, kept)
            moved = process.result(after)
            session.select(kept)
        state, current = after, moved
    else:
        if not keeps_best:
            final_result[active] = current
    return Execution(final_result, num_updates, num_gradients, outcome, reason, session.reasons)


def _are_finite(observation: StepObservation, moved: Tensor) -> Tensor:
    """Which items have a finite loss, gradient and next iterate, bool [K]."""
    finite = observation.loss.isfinite() & moved.isfinite().flatten(1).all(1)
    if observation.log_grad_norm is not None:
        finite &= observation.log_grad_norm.isfinite()
    return finite
