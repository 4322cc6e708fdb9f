"""Engines in `haltwise.solve`: problems in chunks, each stopped by its price or by tolerances."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.progress import followed
from haltwise._core.settings import got
from haltwise._core.tensors import tensors_of
from haltwise.engines import Engine
from haltwise.engines.gauss_newton import GaussNewton
from haltwise.engines.hand_rule import RuleEngine
from haltwise.engines.named import choice_of
from haltwise.engines.process import completed, lies_below
from haltwise.engines.rule_stop import RuleStop
from haltwise.engines.run import PLATEAU, begin, descend, failures_of, reasons_of
from haltwise.engines.stops import LBFGSB, EngineStop, PriceStop, ToleranceStop
from haltwise.models.card import Choice
from haltwise.models.files import halting_of, placed, read_model
from haltwise.models.halting_model import HaltingModel
from haltwise.models.loading import find
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.early_exit import Outcome
from haltwise.rollout.ledger import Ledger
from haltwise.stop_rules import RETURNABLE, CostUnit, StopPolicy, StopRule
from haltwise.tasks.base import TaskBatch

__all__ = [
    "EngineSolution",
    "RuleToStop",
    "cached_chunk",
    "rule_to_stop",
    "solve_by_engine",
    "tolerances_of",
]

_BYTES = 2**24  # of a chunk: of less, dispatching takes the time, and of more, memory does
_REMEMBERED = 12  # vectors of a problem that L-BFGS keeps; others keep D of them, or fewer
_FEWEST = 64  # problems, below which dispatching operations takes the time


class RuleToStop(NamedTuple):
    """A stop rule that is to stop an engine, and the model that it asks: see `RuleStop`."""

    policy: StopPolicy
    model: HaltingModel | None = None
    from_first: bool = True


def rule_to_stop(
    stop: str | Path | HaltingModel | OptimizerModel | StopRule | StopPolicy,
    engine: Engine,
    like: Tensor,
) -> RuleToStop:
    """What `stop` of `haltwise.solve` means for an engine.

    Args:
        stop: A shipped name, a run directory, a weights file or the model itself; or a rule.
        engine: What is to be stopped.
        like: In whose dtype and on whose device the model is to be.

    Raises:
        InputError: The model stops something else, or was trained without halting.
    """
    if isinstance(stop, StopPolicy):
        return RuleToStop(stop)
    if isinstance(stop, StopRule):
        return RuleToStop(StopPolicy(stop, RETURNABLE[CostUnit.UPDATES][0]))
    require(
        isinstance(stop, str | Path | HaltingModel | OptimizerModel),
        "stop must be a halting model, its name or its run, a StopRule, a StopPolicy or None, "
        f"{got(stop)}; for a number of evaluations give max_steps",
    )
    model = read_model(find(stop)) if isinstance(stop, str | Path) else stop
    card, own = model.card, choice_of(engine)
    known = choice_of(RuleEngine(model.rule)) if isinstance(model, OptimizerModel) else card.engine
    require(
        known == own,
        f"this model stops {'other loops' if known is None else _named(known)}, not {_named(own)}; "
        "train one by haltwise.training.train_stop, or give a tolerance or a price",
    )
    halting = halting_of(model)
    require(
        halting.readout_size == 0,
        "this model reads the hidden state of its own optimizer; give it as the optimizer",
    )
    require(halting.halts, "this model was trained without halting; give a tolerance or a price")
    policy = halting.policy(CostUnit.UPDATES)
    return RuleToStop(policy, placed(halting, like), card.engine is not None)


def _named(choice: Choice) -> str:
    settings = ", ".join(f"{name}={value!r}" for name, value in choice.settings.items())
    return f"{choice.name}({settings})" if settings else choice.name


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


def tolerances_of(
    engine: Engine,
    gtol: float | None,
    ftol: float | None,
    xtol: float | None,
    *,
    by_default: bool,
) -> ToleranceStop:
    """The tolerances asked for; SciPy's own where there are none, if `by_default`."""
    kind = {"least_squares": isinstance(engine, GaussNewton), "searches": engine.is_monotone}
    if by_default and gtol is None and ftol is None and xtol is None:
        if kind["least_squares"]:  # scipy.optimize.least_squares
            return ToleranceStop(1e-8, 1e-8, 1e-8, **kind)
        return replace(LBFGSB, **kind)
    return ToleranceStop(gtol, ftol, xtol, **kind)


def solve_by_engine(
    engine: Engine,
    problem: TaskBatch,
    tolerances: ToleranceStop,
    price: Tensor | None,
    max_steps: int,
    *,
    rule: RuleToStop | None = None,
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
        rule: What stops them, too; a model is asked at the price.
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
        part = problem if chunk_size >= number else problem.part(chunk.start, chunk.stop)
        stops: list[EngineStop] = [tolerances]
        if price is not None and (rule is None or rule.model is None):
            stops.insert(0, PriceStop(price[rows], searches=engine.is_monotone))
        if rule is not None:
            own = torch.zeros_like(part.start[:, 0]) if price is None else price[rows]
            own_stop = RuleStop(
                *(rule.policy, own, rule.model),
                from_first=rule.from_first,
                completes=engine.completes,
            )
            stops.insert(0, own_stop)
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
    size += min(problem.dim, _REMEMBERED) * problem.dim * problem.start.element_size()
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
    left, reason = torch.where(halted, found.gain, torch.nan), found.reason
    if engine.completes:
        moves = halted & (found.move != 0).any(1)
        params, loss, taken = completed(batch, found.point, found.move, moves)
        steps = torch.where(taken, found.spent + 1, found.at)
        left = (left - (found.point.loss - loss)).clamp_min(0)
        first = 0
        for stop in stops:
            reason = stop.completed(reason - first, left) + first
            first += len(stop.reasons)
    if found.passed is not None:
        best, lower, at = found.passed
        below = lies_below(lower, loss)
        params = torch.where(below.unsqueeze(1), best, params)
        loss, steps = torch.where(below, lower, loss), torch.where(below, at, steps)
        left = left.masked_fill(below, torch.nan)
        plateau = reasons_of(stops).index(PLATEAU)
        reason = reason.masked_fill(below & (reason >= 0), plateau)
    # Steps within rounding of the loss may climb by as little.
    worse = (loss > begun.point.loss).nonzero().squeeze(1)
    params[worse], loss[worse], steps[worse] = batch.start[worse], begun.point.loss[worse], 0
    success = halted.clone()
    for failure in failures_of(stops):
        success &= reason != failure
    return EngineSolution(
        params, loss, steps, found.spent + 1, found.outcome, reason, success, left
    )
