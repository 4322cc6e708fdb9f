"""Thousands of problems in one call: each runs until it is not worth another gradient."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import select_state
from haltwise.halting.session import HaltingSession
from haltwise.models.files import placed
from haltwise.models.loading import load
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.rollout.early_exit import Execution, run_until_halted
from haltwise.stop_rules import RETURNABLE, CostUnit, StopPolicy, StopRule
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
    given = optimizer if isinstance(optimizer, OptimizerModel) else load(optimizer)
    model = placed(given, start)
    policy = _policy(model, stop)
    prices = _prices(model, price, start)
    num_steps = model.card.horizon if max_steps is None else max_steps
    require(num_steps >= 1, f"max_steps must be at least 1, got {num_steps}")
    if chunk_size is None:
        chunk_size = max(1, _CHUNK.get(start.device.type, _ACCELERATOR_CHUNK) // problem.dim)
    require(chunk_size >= 1, f"chunk_size must be at least 1, got {chunk_size}")
    # Of the whole batch: where a rule draws lots, chunks must not draw the same.
    memory = policy.rule.init(problem.num_problems, start)
    parts = [
        _solve_chunk(
            model,
            problem if chunk_size >= problem.num_problems else problem.select(index),
            policy,
            prices[index],
            num_steps,
            select_state(memory, index),
        )
        for index in torch.arange(problem.num_problems, device=start.device).split(chunk_size)
    ]
    kept = None
    if history:
        width = max(losses.shape[1] for _, _, losses in parts)
        kept = torch.cat(
            [
                torch.nn.functional.pad(losses, (0, width - losses.shape[1]), value=math.nan)
                for _, _, losses in parts
            ]
        )
    return Solution(
        params=torch.cat([run.result for run, _, _ in parts]),
        loss=torch.cat([loss for _, loss, _ in parts]),
        steps=torch.cat([run.num_updates for run, _, _ in parts]),
        num_gradients=torch.cat([run.num_gradients for run, _, _ in parts]),
        outcome=torch.cat([run.outcome for run, _, _ in parts]),
        reason=torch.cat([run.reason for run, _, _ in parts]),
        reasons=policy.rule.reasons,
        history=kept,
    )


def _solve_chunk(
    model: OptimizerModel,
    batch: TaskBatch,
    policy: StopPolicy,
    price: Tensor,
    max_steps: int,
    memory: dict[str, Tensor],
) -> tuple[Execution, Tensor, Tensor]:
    """The execution, the loss of what it returns [B] and those it saw [B, T], NaN where none."""
    columns: list[Tensor] = []

    def watch(running: Tensor, loss: Tensor) -> None:
        columns.append(torch.full_like(price, torch.nan).index_copy_(0, running, loss))

    session = HaltingSession(policy, price, model.halting, memory)
    run = run_until_halted(OptimizationProcess(model.rule, batch), session, max_steps, watch=watch)
    losses = torch.stack(columns, 1)
    # theta_s was observed if s < num_gradients; if not, each s is a step of its own.
    seen = run.num_updates.clamp_max(losses.shape[1] - 1).unsqueeze(1)
    loss = losses.gather(1, seen).squeeze(1)
    unseen = run.num_updates == run.num_gradients
    for step in run.num_updates[unseen].unique().tolist():
        index = (unseen & (run.num_updates == step)).nonzero().squeeze(1)
        loss[index] = batch.select(index).observe_loss(run.result[index], step)
    return run, loss, losses


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


def _policy(model: OptimizerModel, stop: StopRule | StopPolicy | None) -> StopPolicy:
    if stop is None:
        return model.policy(CostUnit.GRADIENTS)
    if isinstance(stop, StopPolicy):
        return stop
    require(
        isinstance(stop, StopRule),
        f"stop must be a StopRule, a StopPolicy or None, got {stop!r}; for a number of steps give "
        "max_steps or haltwise.stop_rules.FixedBudget",
    )
    return StopPolicy(stop, RETURNABLE[CostUnit.GRADIENTS][0])


def _prices(model: OptimizerModel, price: float | Tensor | None, like: Tensor) -> Tensor:
    price = model.card.price if price is None else price
    given = torch.as_tensor(price, dtype=like.dtype, device=like.device)
    require(
        given.ndim == 0 or given.shape == like.shape[:1],
        f"price must be one number or one per problem, shape [{len(like)}], "
        f"got shape {list(given.shape)}",
    )
    require(
        bool(((given > 0) & given.isfinite()).all()),
        f"every price must be above 0 and finite, got {given.min().item():g}; it is what a "
        "gradient must earn, in units of the loss",
    )
    return given.expand(len(like))
