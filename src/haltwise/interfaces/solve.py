"""Thousands of problems in one call: each runs until it is not worth another gradient."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.errors import require
from haltwise._core.tensors import select_state
from haltwise.halting.session import HaltingSession
from haltwise.interfaces.run import price_of_each, stop_policy
from haltwise.models.files import placed
from haltwise.models.loading import load
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.rollout.early_exit import run_until_halted
from haltwise.stop_rules import CostUnit, StopPolicy, StopRule
from haltwise.tasks.base import TaskBatch
from haltwise.tasks.function import FunctionBatch

__all__ = ["Solution", "solve"]

_CHUNK = {"cpu": 2**17}  # coordinates at once; their states and temporaries take 1.4 kB each
_ACCELERATOR_CHUNK = 2**20


@final
@dataclass(frozen=True)
class Solution:
    """What became of B problems.

    Attributes:
        params: The parameters returned, shape [B, D].
        loss: The loss there, shape [B]; of a stochastic task that of minibatch number `steps`.
        steps: Updates that led there, int64 [B].
        num_gradients: Gradients evaluated, int64 [B].
        outcome: `haltwise.Outcome` values, int64 [B]: HALTED by the stop rule, OUT_OF_STEPS, or
            NONFINITE where a loss, gradient or update was not finite; the parameters are then the
            last finite ones.
        reason: Index into `reasons` of what stopped each problem, -1 where the rule did not;
            int64 [B].
        reasons: Why a problem may be stopped, in words.
        history: If asked for, the loss at theta_t in column t, NaN where it was never evaluated,
            shape [B, max(num_gradients)].
    """

    params: Tensor
    loss: Tensor
    steps: Tensor
    num_gradients: Tensor
    outcome: Tensor
    reason: Tensor
    reasons: tuple[str, ...]
    history: Tensor | None = None


@torch.no_grad()
def solve(
    problem: TaskBatch,
    optimizer: str | Path | OptimizerModel = "regression-10d",
    stop: StopRule | StopPolicy | None = None,
    *,
    price: float | Tensor | None = None,
    max_steps: int | None = None,
    history: bool = False,
    chunk_size: int | None = None,
) -> Solution:
    """Minimise B problems side by side; each leaves the batch as soon as it halts.

    All is computed in the dtype (float32 or float64) and on the device of `problem.start`.
    Problems run in chunks, so what memory is needed beside the problems and the solution does not
    grow with B; the results do not depend on the chunks, up to rounding.

    Args:
        problem: The batch, for instance a `haltwise.FunctionBatch` of your own loss.
        optimizer: A shipped name, a run directory, a weights file or the optimizer itself.
        stop: When to stop, as a policy or as a rule, which then returns the last update applied.
            The optimizer's own policy, gradients being counted, if None.
        price: What a gradient must earn, in units of the loss, one for all or [B]; what the
            optimizer was meta-trained for if None.
        max_steps: Gradients a problem may cost at most; the optimizer's horizon if None.
        history: Whether to keep the loss of every step.
        chunk_size: Problems at once. If None, so many that their parameters come to 131,072 numbers
            on a CPU (some 200 MB) and 2^20 elsewhere.

    Returns:
        One outcome per problem; a problem that goes wrong disturbs no other. Where the loss of
        what is returned was never observed, it is evaluated once more, without being counted in
        `num_gradients`.

    Raises:
        InputError: The problem, the optimizer or a setting is no good.

    Examples:
        >>> from haltwise.tasks import family
        >>> problem = family("regression-10d").sample(100, torch.Generator().manual_seed(0))
        >>> solution = solve(problem, optimizer="regression-10d")
        >>> solution.params.shape, bool(solution.steps.float().mean() < 15)
        (torch.Size([100, 10]), True)
    """
    _check(problem)
    start = problem.start
    model = placed(optimizer if isinstance(optimizer, OptimizerModel) else load(optimizer), start)
    policy = stop_policy(model.halting, stop, CostUnit.GRADIENTS)
    prices = price_of_each(model.halting, price, problem.num_problems, start)
    num_steps = model.card.horizon if max_steps is None else max_steps
    if chunk_size is None:
        chunk_size = max(1, _CHUNK.get(start.device.type, _ACCELERATOR_CHUNK) // problem.dim)
    require(chunk_size >= 1, f"chunk_size must be at least 1, got {chunk_size}")
    # Of the whole batch: where a rule draws lots, chunks must not draw the same.
    memory = policy.rule.init(problem.num_problems, start)
    parts = []
    for index in torch.arange(problem.num_problems, device=start.device).split(chunk_size):
        chunk = problem if len(index) == problem.num_problems else problem.select(index)
        session = HaltingSession(policy, prices[index], model.halting, select_state(memory, index))
        parts.append(_solve_chunk(OptimizationProcess(model.rule, chunk), session, num_steps))
    return _joined(parts, history=history)


def _solve_chunk(process: OptimizationProcess, session: HaltingSession, max_steps: int) -> Solution:
    """The solution of some problems, with its history."""
    start = process.batch.start
    columns: list[Tensor] = []

    def watch(running: Tensor, loss: Tensor) -> None:
        column = start.new_full((len(start),), torch.nan)
        columns.append(column.index_copy_(0, running, loss))

    run = run_until_halted(process, session, max_steps, watch=watch)
    losses = torch.stack(columns, 1)
    # theta_s was observed if s < num_gradients; if not, each s is a step of its own.
    seen = run.num_updates.clamp_max(losses.shape[1] - 1).unsqueeze(1)
    loss = losses.gather(1, seen).squeeze(1)
    unseen = run.num_updates == run.num_gradients
    for step in run.num_updates[unseen].unique().tolist():
        index = (unseen & (run.num_updates == step)).nonzero().squeeze(1)
        loss[index] = process.batch.select(index).observe_loss(run.result[index], step)
    return Solution(
        params=run.result,
        loss=loss,
        steps=run.num_updates,
        num_gradients=run.num_gradients,
        outcome=run.outcome,
        reason=run.reason,
        reasons=run.reasons,
        history=losses,
    )


def _joined(parts: list[Solution], *, history: bool) -> Solution:
    """The problems of all parts in order."""
    values: dict[str, Any] = {
        item.name: torch.cat([getattr(part, item.name) for part in parts])
        for item in fields(Solution)
        if item.name not in ("reasons", "history")
    }
    if history:
        losses = [part.history for part in parts if part.history is not None]
        width = max(seen.shape[1] for seen in losses)
        values["history"] = torch.cat(
            [pad(seen, (0, width - seen.shape[1]), value=math.nan) for seen in losses]
        )
    return Solution(reasons=parts[0].reasons, **values)


def _check(problem: TaskBatch) -> None:
    require(
        isinstance(problem, TaskBatch),
        f"a problem must be a TaskBatch, got {type(problem).__name__}; "
        "make one of a loss by haltwise.FunctionBatch(start, loss, data)",
    )
    start = problem.start
    require(
        isinstance(start, Tensor) and start.ndim == 2 and start.numel() > 0,
        "start must be a tensor of shape [B, D], a row of parameters for each problem, got "
        + (f"shape {list(start.shape)}" if isinstance(start, Tensor) else type(start).__name__),
    )
    require(
        start.dtype in (torch.float32, torch.float64),
        f"start must be float32 or float64, got {start.dtype}; convert it by start.float()",
    )
    bad = (~start.isfinite()).any(1).nonzero().flatten().tolist()
    require(
        not bad,
        f"start holds NaN or infinity in {len(bad)} of {len(start)} problems, first in problem "
        f"{bad[0] if bad else None}; start from finite parameters",
    )
    if isinstance(problem, FunctionBatch):
        problem.check()
