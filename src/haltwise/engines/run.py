"""The loop of engines: B problems descend side by side, and those that have halted leave."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.plugins import comes_with_the_package
from haltwise._core.tensors import are_finite, nested_state, select_state, tensors_of
from haltwise.engines.base import Engine, EngineObservation, Memory, Point, Proposal, within
from haltwise.engines.process import lowest, try_step
from haltwise.engines.stops import EngineStop
from haltwise.rollout.early_exit import Outcome
from haltwise.rollout.ledger import Ledger
from haltwise.rollout.rows import Rows, gather_rows, scatter_rows
from haltwise.rollout.step_graphs import Loop, StepGraphs, advance_all, batch_kind
from haltwise.tasks.base import TaskBatch

__all__ = ["PLATEAU", "ZERO", "Begun", "Descended", "begin", "descend", "failures_of", "reasons_of"]

PLATEAU = (
    "the lowest point found is a plateau, where a parameter is no longer felt, and no way led "
    "below it before the stop; start elsewhere, go on for longer, or choose another method"
)
"""Why a problem is no success that has passed over a lower point, in words."""
ZERO = "the gradient is zero"
"""Why `descend` halts a problem that has nowhere to go, in words."""

_MOVING = 0.5  # of an evaluation, that it costs to move a problem and its data


@final
@dataclass
class Begun:
    """B problems where an engine begins.

    Attributes:
        point: Where they are; at a loss or gradient that is not finite none is moved.
        memory: Of the engine.
        budget: Evaluations each problem may still cost, int64 [B].
    """

    point: Point
    memory: Memory
    budget: Tensor


@final
@dataclass(frozen=True)
class Descended:
    """What has become of B problems.

    Attributes:
        point: The best points, or for engines that are not monotone the last and best alike.
        move: The next step from there, which was not taken, shape [B, D].
        gain: What it is forecast to gain, shape [B].
        spent: Evaluations, int64 [B].
        at: How many of them had been made when the point was reached, int64 [B].
        outcome: `Outcome` values, int64 [B].
        reason: Index into `reasons_of(stops)` of what halted each, -1 where nothing did; int64 [B].
        passed: Of engines that pass over points, the parameters [B, D] and the loss [B] of the
            lowest point seen, and how many evaluations had been made when it was, int64 [B].
    """

    point: Point
    move: Tensor
    gain: Tensor
    spent: Tensor
    at: Tensor
    outcome: Tensor
    reason: Tensor
    passed: tuple[Tensor, Tensor, Tensor] | None = None


def reasons_of(stops: Sequence[EngineStop]) -> tuple[str, ...]:
    """Why `descend` halts a problem, in words."""
    return (
        *(reason for stop in stops for reason in stop.reasons),
        "no direction is found in which the loss falls",
        PLATEAU,
        ZERO,
    )


def failures_of(stops: Sequence[EngineStop]) -> tuple[int, ...]:
    """Which of `reasons_of` are no success."""
    failures, first = [], 0
    for stop in stops:
        failures += [first + reason for reason in stop.failures]
        first += len(stop.reasons)
    return (*failures, first, first + 1)


def begin(engine: Engine, batch: TaskBatch, budget: Tensor) -> tuple[Begun, EngineObservation]:
    """Evaluate a batch at its start, which costs one of the budget (int64 [B]).

    Those that are not finite there have nothing left of it.
    """
    seen = engine.observe_first(batch)
    point = Point(batch.start, seen.loss, seen.grad)
    finite = seen.is_finite()
    if seen.curvature is not None:
        finite &= are_finite(seen.curvature).flatten(1).all(1)
    return Begun(point, engine.init(point, seen), torch.where(finite, budget - 1, 0)), seen


@torch.no_grad()
def descend(
    engine: Engine,
    batch: TaskBatch,
    begun: Begun,
    stops: Sequence[EngineStop],
    *,
    ledger: Ledger | None = None,
    items: Tensor | None = None,
    graphs: StepGraphs | None = None,
    leaves_gaps: bool = False,
) -> Descended:
    """Lower the loss of B problems, each until a stop says so or its budget is spent.

    Args:
        engine: What proposes steps.
        batch: B problems, deterministic.
        begun: Where they are.
        stops: When each stops; the first that says so gives the reason.
        ledger: Where every evaluation is noted, if it is to be.
        items: Which of its problems these are, int64 [B].
        graphs: Where steps are recorded, if they are to be and the batch is one of this package.
        leaves_gaps: Whether problems that have halted stay where they are, evaluated unseen, until
            that has cost as much as moving the others.
    """
    run = _Run(engine, batch, begun, stops, ledger, items, leaves_gaps=leaves_gaps)
    advance_all(run, batch.dim, graphs)
    return run.descended()


class _Plan(NamedTuple):
    """The next step of M problems, what stops them before it, and which end."""

    proposal: Proposal
    reason: Tensor
    ended: Tensor


@final
class _Run:
    """Problems that descend side by side, and what has become of all.

    Attributes:
        items: Which of the B problems descend, int64 [M]; B where a place is empty.
        point: Where they are.
        memory: Of the engine.
        watches: Memories of the stops.
        counts: What is left of the budget, spent, and spent before the point; each int64 [M].
        results: What has become of all, rows of B + 1.
    """

    def __init__(
        self,
        engine: Engine,
        batch: TaskBatch,
        begun: Begun,
        stops: Sequence[EngineStop],
        ledger: Ledger | None,
        of_ledger: Tensor | None,
        *,
        leaves_gaps: bool,
    ) -> None:
        self.engine, self.batch, self.stops, self.ledger = engine, batch, stops, ledger
        self.point, self.memory = begun.point, begun.memory
        self.num_items = batch.num_problems
        self.items = torch.arange(self.num_items, device=begun.budget.device)
        self.of_ledger = self.items if of_ledger is None else of_ledger
        if ledger is not None:
            self.of_ledger = pad(self.of_ledger, (0, 1), value=len(ledger.count))
        self.watches = [stop.init(self.point) for stop in stops]
        none = torch.zeros_like(self.items)
        self.counts: Memory = {"budget": begun.budget, "spent": none, "at": none.clone()}
        remembers = engine.passes_over or not engine.is_monotone
        self.best = begun.point if remembers else None
        if engine.passes_over:
            self.counts["best_at"] = none.clone()
        self._leaves_gaps, self._num_empty, self._idle = leaves_gaps, 0, 0
        start = begun.point
        outcome = self.items.new_full((self.num_items + 1,), int(Outcome.OUT_OF_STEPS))
        self.results: Rows = {
            "outcome": outcome,
            "reason": torch.full_like(outcome, -1),
            "params": start.params.new_zeros(self.num_items + 1, start.params.shape[1]),
            "move": start.params.new_zeros(self.num_items + 1, start.params.shape[1]),
            "grad": start.params.new_zeros(self.num_items + 1, start.params.shape[1]),
            "loss": start.loss.new_zeros(self.num_items + 1),
            "gain": start.loss.new_zeros(self.num_items + 1),
            "spent": torch.zeros_like(outcome),
            "at": torch.zeros_like(outcome),
        }
        if engine.passes_over:
            self.results["best_params"] = torch.zeros_like(self.results["params"])
            self.results["best_loss"] = torch.zeros_like(self.results["loss"])
            self.results["best_at"] = torch.zeros_like(outcome)

    def step(self) -> None:
        """Take a step with those that do not end before it; the others leave."""
        plan = self._plan()
        number = int(plan.ended.sum())
        if number > self._num_empty:
            self._settle(plan)
            self._num_empty = number
        if number == len(self.items):
            self.items = self.items[:0]
            return
        self._idle += number
        if number and (not self._leaves_gaps or self._idle > _MOVING * (len(self.items) - number)):
            kept = (~plan.ended).nonzero().squeeze(1)
            self._select(kept)
            plan = _Plan(
                Proposal(*(value[kept] for value in plan.proposal if value is not None)), *plan[1:]
            )
            self._num_empty = self._idle = 0
        elif number:
            plan = self._leave(plan)
        self._try(plan.proposal)

    def step_in_place(self) -> None:
        """Take a step with those that do not end before it; the places of others are empty."""
        plan = self._plan()
        self._settle(plan)
        self._try(self._leave(plan).proposal)

    def _plan(self) -> _Plan:
        proposal = self.engine.propose(self.point, self.memory)
        proposal = within(self.batch.reach, self.point, proposal)
        reason, first = torch.full_like(self.items, -1), 0
        watches = []
        for stop, before in zip(self.stops, self.watches, strict=True):
            found, memory = stop.decide(self.point, proposal, before)
            watches.append(memory)
            reason = torch.where((found >= 0) & (reason < 0), found + first, reason)
            first += len(stop.reasons)
        self.watches = watches
        lost = (reason < 0) & ~(proposal.slope < 0)  # NaN, too
        reason = reason.masked_fill(lost, first)
        reason = reason.masked_fill((self.point.grad == 0).all(1), first + 2)
        ended = (reason >= 0) | (self.counts["budget"] <= 0) | (self.items == self.num_items)
        return _Plan(proposal, reason, ended)

    def _settle(self, plan: _Plan) -> None:
        """Write down what has become of those that end."""
        proposal, sound = plan.proposal, EngineObservation(*self.point[1:]).is_finite()
        outcome = torch.where(plan.reason >= 0, int(Outcome.HALTED), int(Outcome.OUT_OF_STEPS))
        written = {
            **(self.point if self.engine.is_monotone else self.best or self.point)._asdict(),
            "move": proposal.move,
            "gain": proposal.gain,
            "spent": self.counts["spent"],
            "at": self.counts["at"],
            "outcome": torch.where(sound, outcome, int(Outcome.NONFINITE)),
            "reason": torch.where(sound, plan.reason, -1),
        }
        if self.engine.passes_over:
            assert self.best is not None
            written["best_params"], written["best_loss"] = self.best.params, self.best.loss
            written["best_at"] = self.counts["best_at"]
        rows = self.items.masked_fill(~plan.ended, self.num_items)
        for name, value in written.items():
            self.results[name].index_copy_(0, rows, value)

    def _leave(self, plan: _Plan) -> _Plan:
        """Leave the places of those that end empty, at parameters known to be sound."""
        self.items = self.items.masked_fill(plan.ended, self.num_items)
        move = plan.proposal.move.masked_fill(plan.ended.unsqueeze(1), 0)
        return plan._replace(proposal=plan.proposal._replace(move=move))

    def _select(self, kept: Tensor) -> None:
        """Go on with the places at `kept` (int64 [L]) alone."""
        self.items, self.batch = self.items[kept], self.batch.select(kept)
        self.point = Point(*(value[kept] for value in self.point))
        self.best = None if self.best is None else Point(*(value[kept] for value in self.best))
        self.memory, self.counts = select_state(self.memory, kept), select_state(self.counts, kept)
        self.watches = [select_state(memory, kept) for memory in self.watches]

    def _try(self, proposal: Proposal) -> None:
        before, counts = self.point, self.counts
        tried = try_step(self.engine, self.batch, before, proposal, self.memory)
        taken, after, self.memory = tried.taken, tried.after, tried.memory
        if self.ledger is not None:
            seen = tried.seen
            self.ledger.note(self.of_ledger[self.items], tried.trial, seen.loss, seen.grad)
        self.watches = [
            stop.learn(before, proposal, after, taken, memory)
            for stop, memory in zip(self.stops, self.watches, strict=True)
        ]
        spent = counts["spent"] + 1
        self.counts = {**counts, "budget": counts["budget"] - 1, "spent": spent}
        reached = {"at": taken}
        if self.best is not None:
            self.best, better = lowest(self.best, tried)
            reached |= {"best_at" if self.engine.passes_over else "at": better}
        for name, where in reached.items():
            self.counts[name] = torch.where(where, spent, counts[name])
        self.point = after

    def descended(self) -> Descended:
        """What has become of all."""
        rows = {name: value[:-1] for name, value in self.results.items()}
        point = Point(rows.pop("params"), rows.pop("loss"), rows.pop("grad"))
        passed = None
        if self.engine.passes_over:
            passed = rows.pop("best_params"), rows.pop("best_loss"), rows.pop("best_at")
        return Descended(point, passed=passed, **rows)

    # -------------------------------------------------------------------------- recorded

    @property
    def kind(self) -> tuple[object, ...] | None:
        """What steps depend on beside values of tensors; None if they cannot be recorded."""
        kind = batch_kind(self.batch)
        if kind is None or not comes_with_the_package(self.batch, self.engine, *self.stops):
            return None
        if not (self.engine.is_recordable and all(stop.is_recordable for stop in self.stops)):
            return None
        reasons = (stop.reasons for stop in self.stops)
        return "descent", *kind, self.engine, *reasons, *(self.ledger.kind if self.ledger else ())

    def spread(self, places: int) -> "_RecordedRun":
        """A copy, with so many places."""
        rows, part = self._rows(places), copy.copy(self)
        index = torch.arange(places, device=rows.device)
        part._select(index.clamp_max(len(self.items) - 1))  # empty places hold something sound
        part.items = torch.where(rows < self.num_items, index, places)
        part.num_items = places
        part.results = gather_rows(self.results, rows)
        if self.ledger is not None:
            part.ledger = self.ledger.part(self.of_ledger[rows])
        part.of_ledger = torch.arange(places + 1, device=rows.device)
        return _RecordedRun(part)

    def gather(self, loop: "_RecordedRun") -> None:
        """Go on where a copy has ended, with the problems that are left."""
        part, number = loop.run, len(self.items)
        rows = self._rows(part.num_items)
        scatter_rows(self.results, rows, part.results)
        if self.ledger is not None:
            assert part.ledger is not None
            scatter_rows(self.ledger.rows, self.of_ledger[rows], part.ledger.rows)
        kept = (part.items[:number] < part.num_items).nonzero().squeeze(1)
        items, batch = self.items, self.batch
        self.point, self.best, self.memory = part.point, part.best, part.memory
        self.counts, self.watches = part.counts, part.watches
        self.items, self.batch = items, batch
        self._num_empty = self._idle = 0
        if len(kept):
            self._select(kept)
        else:
            self.items = items[kept]

    def _rows(self, places: int) -> Tensor:
        """Which problem is in each of so many places, int64 [places]."""
        return pad(self.items, (0, places - len(self.items)), value=self.num_items)

    def moving(self) -> dict[str, Tensor]:
        """What is new after a step; all else is constant, or changed in place."""
        best = {} if self.best is None else nested_state(self.best._asdict(), "best.")
        watched = {
            name: value
            for number, memory in enumerate(self.watches)
            for name, value in nested_state(memory, f"watches.{number}.").items()
        }
        return {
            "items": self.items,
            **nested_state(self.point._asdict(), "point."),
            **nested_state(self.memory, "memory."),
            **nested_state(self.counts, "counts."),
            **best,
            **watched,
        }


@final
class _RecordedRun(Loop):
    """Problems that descend in their places."""

    def __init__(self, run: _Run) -> None:
        self.run = run

    @property
    def kind(self) -> tuple[object, ...]:
        kind = self.run.kind
        assert kind is not None
        return kind

    def tensors(self) -> dict[str, Tensor]:
        run = self.run
        ledger = {} if run.ledger is None else nested_state(run.ledger.rows, "ledger.")
        return {
            **run.moving(),
            "of_ledger": run.of_ledger,
            **nested_state(tensors_of(run.batch), "batch."),
            **nested_state(run.results, "results."),
            **ledger,
        }

    def advance(self, num_steps: int) -> dict[str, Tensor]:
        run = copy.copy(self.run)
        for _ in range(num_steps):
            run.step_in_place()
        return run.moving()

    def num_left(self) -> int:
        return int((self.run.items < self.run.num_items).sum())
