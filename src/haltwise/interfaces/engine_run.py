"""Engines in `haltwise.solve`: problems in chunks, each stopped by its price or by tolerances."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from haltwise._core import discovery
from haltwise._core.errors import InputError, require
from haltwise._core.progress import followed
from haltwise._core.tensors import are_finite, map_tensors, tensors_of
from haltwise.engines import Engine, engines
from haltwise.engines.base import rounding
from haltwise.engines.choose import EngineChoice, choose
from haltwise.engines.gauss_newton import GaussNewton
from haltwise.engines.hand_rule import RuleEngine
from haltwise.engines.run import Descended, begin, descend, failures_of, reasons_of
from haltwise.engines.stops import EngineStop, PriceStop, ToleranceStop
from haltwise.rollout.early_exit import Outcome
from haltwise.rollout.ledger import Ledger
from haltwise.tasks.base import TaskBatch
from haltwise.update_rules import UpdateRule

__all__ = ["EngineSolution", "cached_chunk", "engine_for", "solve_by_engine", "tolerances_of"]

_BYTES = 2**22  # of a chunk's problems: beyond that they are in no cache
_FEWEST = 64  # problems, below which dispatching operations takes the time


class EngineSolution(NamedTuple):
    """Of `haltwise.Solution`, what differs from problem to problem; each [B, ...]."""

    params: Tensor
    loss: Tensor
    steps: Tensor
    num_gradients: Tensor
    outcome: Tensor
    reason: Tensor
    success: Tensor
    left: Tensor


def engine_for(
    method: str | Engine | UpdateRule, problem: TaskBatch
) -> tuple[Engine, EngineChoice]:
    """The engine that is meant, and why.

    Raises:
        InputError: There is none of this name, or it cannot solve such problems.
    """
    choice = choose(problem) if method == "auto" else EngineChoice(str(method), "it was asked for")
    if isinstance(method, UpdateRule):
        method = RuleEngine(method)
    if isinstance(method, Engine):
        engine = method
    else:
        require(
            isinstance(method, str),
            f"method must be a name, an engine or an update rule, got {type(method).__name__}",
        )
        names = {"lstm": None, "auto": None, **engines()}
        engine = discovery.lookup(names, choice.name, "method")
    require(
        not problem.stochastic,
        f"method {choice.name!r} needs a loss that is the same at every step; choose 'lstm'",
    )
    refusal = engine.refusal(problem)
    if refusal is not None:
        raise InputError(
            f"method {choice.name!r} cannot solve these problems: {refusal}; choose 'lbfgs' or "
            "'auto'"
        )
    return engine, choice


def tolerances_of(
    engine: Engine, price: object, gtol: float | None, ftol: float | None, xtol: float | None
) -> ToleranceStop:
    """The tolerances asked for; SciPy's own where neither these nor a price are."""
    kind = {"least_squares": isinstance(engine, GaussNewton), "searches": engine.is_monotone}
    if price is None and gtol is None and ftol is None and xtol is None:
        if kind["least_squares"]:  # scipy.optimize.least_squares
            return ToleranceStop(1e-8, 1e-8, 1e-8, **kind)
        return ToleranceStop(1e-5, 1e7 * 2.220446049250313e-16, **kind)  # L-BFGS-B
    return ToleranceStop(gtol, ftol, xtol, **kind)


def solve_by_engine(
    engine: Engine,
    problem: TaskBatch,
    tolerances: ToleranceStop,
    price: Tensor | None,
    max_steps: int,
    *,
    chunk_size: int | None = None,
    history: bool = False,
    progress: bool = False,
) -> tuple[EngineSolution, tuple[str, ...], list[Tensor]]:
    """Solve chunk after chunk.

    Args:
        engine: How.
        problem: B problems.
        tolerances: When to stop.
        price: What an evaluation must earn, shape [B], if that stops them, too.
        max_steps: Evaluations that a problem may cost.
        chunk_size: Problems at once; as many as fit the cache if None.
        history: Whether losses are kept.
        progress: Whether to show how many problems are done.

    Returns:
        What became of the problems, reasons in words, and if asked for the losses of each chunk.
    """
    number = problem.num_problems
    chunk_size = cached_chunk(problem) if chunk_size is None else chunk_size
    count = torch.zeros(number, dtype=torch.int64, device=problem.start.device)
    flags = torch.zeros(number, dtype=torch.bool, device=problem.start.device)
    loss = problem.start.new_empty(number)
    solution = EngineSolution(
        torch.empty_like(problem.start),
        loss,
        count,
        count.clone(),
        count.clone(),
        count.clone(),
        flags,
        loss.clone(),
    )
    reasons: tuple[str, ...] = ()
    losses: list[Tensor] = []
    chunks = [range(number)[first : first + chunk_size] for first in range(0, number, chunk_size)]
    for chunk in followed(chunks, "problems", asked=progress):
        rows = slice(chunk.start, chunk.stop)
        part = problem if chunk_size >= number else map_tensors(problem, lambda v: v[rows])  # noqa: B023
        stops: list[EngineStop] = [tolerances]
        if price is not None:
            stops.insert(0, PriceStop(price[rows]))
        ledger = Ledger(part.start, best=False, recent=False, history=True) if history else None
        found = _solve_chunk(engine, part, stops, max_steps, ledger)
        for whole, own in zip(solution, found, strict=True):
            whole[rows] = own
        reasons = reasons_of(stops)
        if ledger is not None:
            losses.append(ledger.losses)
    return solution, reasons, losses


def cached_chunk(problem: TaskBatch) -> int:
    """As many problems as fit the cache of a CPU, all of them elsewhere."""
    if not problem.start.is_cpu:
        return problem.num_problems
    size = sum(tensor.nbytes for tensor in tensors_of(problem).values()) / problem.num_problems
    return max(_FEWEST, int(_BYTES / size))


def _solve_chunk(
    engine: Engine,
    batch: TaskBatch,
    stops: Sequence[EngineStop],
    max_steps: int,
    ledger: Ledger | None,
) -> EngineSolution:
    budget = torch.full(
        (batch.num_problems,), max_steps, dtype=torch.int64, device=batch.start.device
    )
    begun, seen = begin(engine, batch, budget)
    everything = torch.arange(len(budget), device=budget.device)
    if ledger is not None:
        ledger.note(everything, batch.start, seen.loss, seen.grad)
    found = descend(
        *(engine, batch, begun, stops),
        ledger=ledger,
        items=everything,
        leaves_gaps=ledger is None,
    )
    halted = found.outcome == Outcome.HALTED
    params, loss, steps = found.point.params, found.point.loss, found.at
    left = torch.where(halted, found.gain, torch.nan)
    if engine.completes:
        params, loss, steps = _completed(batch, found, halted)
        left = (left - (found.point.loss - loss)).clamp_min(0)
    # Steps within rounding of the loss may climb by as little.
    worse = (loss > begun.point.loss).nonzero().squeeze(1)
    params[worse], loss[worse], steps[worse] = batch.start[worse], begun.point.loss[worse], 0
    success = halted.clone()
    for reason in failures_of(stops):
        success &= found.reason != reason
    return EngineSolution(
        params, loss, steps, found.spent + 1, found.outcome, found.reason, success, left
    )


def _completed(batch: TaskBatch, found: Descended, halted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the step at hand, where the loss behind it is no higher, but for rounding."""
    point = found.point
    trial = point.params + found.move.masked_fill(~halted.unsqueeze(1), 0)
    with torch.enable_grad():  # a loss may differentiate inside
        loss = batch.observe_loss(trial, 0).detach()
    taken = halted & are_finite(loss) & (loss <= point.loss + rounding(point.loss))
    return (
        torch.where(taken.unsqueeze(1), trial, point.params),
        torch.where(taken, loss, point.loss),
        torch.where(taken, found.spent + 1, found.at),
    )
