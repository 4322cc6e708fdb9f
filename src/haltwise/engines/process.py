"""An engine on a batch of problems as a process: what is recorded, and what a halter is shown."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import are_finite, nested_state, sub_state
from haltwise.engines.base import (
    Engine,
    EngineObservation,
    Memory,
    Point,
    Proposal,
    rounding,
    within,
)
from haltwise.processes.base import Process, ProcessFamily, ProcessStep, State
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS, init_signals, measure_signals
from haltwise.tasks.base import TaskBatch, TaskFamily

__all__ = [
    "Descents",
    "EngineProcess",
    "Tried",
    "View",
    "completed",
    "lies_below",
    "lowest",
    "try_step",
]


@final
@dataclass(frozen=True)
class Tried:
    """What has become of a step of M problems.

    Attributes:
        trial: Where it led, shape [M, D].
        seen: What was evaluated there.
        taken: Where it was taken, bool [M].
        after: Where the problems are now.
        memory: Of the engine, for the next step.
    """

    trial: Tensor
    seen: EngineObservation
    taken: Tensor
    after: Point
    memory: Memory


def try_step(
    engine: Engine, batch: TaskBatch, point: Point, proposal: Proposal, memory: Memory
) -> Tried:
    """Evaluate a batch of M problems behind a step, and take it where the engine does."""
    trial = point.params + proposal.move
    seen = engine.observe(batch, trial)
    taken, memory = engine.learn(point, proposal, seen, memory)
    return Tried(trial, seen, taken, point.moved(trial, seen, taken), memory)


def completed(
    batch: TaskBatch, point: Point, move: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the step at hand where it is wanted and the loss no higher, but for rounding.

    Returns:
        Parameters [B, D], the losses there [B], and where the step was taken, bool [B].
    """
    trial = point.params + move.masked_fill(~wanted.unsqueeze(1), 0)
    with torch.enable_grad():  # a loss may differentiate inside
        loss = batch.observe_loss(trial, 0).detach()
    taken = wanted & are_finite(loss) & (loss <= point.loss + rounding(point.loss))
    params = torch.where(taken.unsqueeze(1), trial, point.params)
    return params, torch.where(taken, loss, point.loss), taken


def lowest(best: Point, tried: Tried) -> tuple[Point, Tensor]:
    """The lowest points that M problems have seen, and where a step has led to it, bool [M]."""
    better = tried.seen.is_finite() & (tried.seen.loss < best.loss)
    return best.moved(tried.trial, tried.seen, better), better


def lies_below(best: Tensor, loss: Tensor) -> Tensor:
    """Where the lowest loss seen [M] is clearly below that of the end, bool [M]."""
    slack: Tensor = torch.finfo(loss.dtype).eps ** 0.5 * loss.abs()
    return best < loss - slack


@final
class View:
    """What a halter is shown of an engine: pure functions of points and a memory.

    The update of a step is the one that the engine proposes, so that of quasi-Newton methods the
    first-order gain is twice what is forecast, g^T H g. The last step is the last one taken.

    Args:
        from_first: Whether losses count from the first one, which no engine can tell from 0;
            those of rules on cards are as observed.
    """

    def __init__(self, *, from_first: bool = True) -> None:
        self._from_first = from_first

    def init(self, point: Point) -> Memory:
        """The memory at the first point."""
        first = point.loss if self._from_first else torch.zeros_like(point.loss)
        return {"first": first, **init_signals(point.params)}

    def show(self, step: int, point: Point, proposal: Proposal, memory: Memory) -> StepObservation:
        """The observation of M problems before a step, their signals included."""
        last = {name: memory[name] for name in ("grad", "update")}
        loss = point.loss - memory["first"]
        signals, _ = measure_signals(step, loss, point.grad, proposal.move, last)
        norm = signals[..., SIGNALS.index("log_grad")]
        return StepObservation(
            step, point.loss, norm, signals, params=point.params, grad=point.grad
        )

    def learn(self, before: Point, proposal: Proposal, taken: Tensor, memory: Memory) -> Memory:
        """The memory after a step."""
        column = taken.unsqueeze(1)
        return {
            "first": memory["first"],
            "grad": torch.where(column, before.grad, memory["grad"]),
            "update": torch.where(column, proposal.move, memory["update"]),
        }


@final
class EngineProcess(Process):
    """B problems under an engine; a step is an evaluation, whether the engine takes it or not.

    A stop at step t has cost t evaluations beside the first. What it returns is where the problem
    is; of an engine that completes its steps what the step at hand leads to, if the loss there is
    no higher; of one that is not monotone, or has passed over a point that is clearly lower, the
    best point so far. Losses are judged above the reference of the batch.

    Args:
        engine: How the problems descend.
        batch: B problems, deterministic.

    Examples:
        >>> from haltwise.engines import engines
        >>> from haltwise.rollout import record_process
        >>> from haltwise.tasks import family
        >>> batch = family("regression-10d").sample(3, torch.Generator().manual_seed(0))
        >>> recorded = record_process(EngineProcess(engines()["lbfgs"], batch), 20)
        >>> bool((recorded.excess[:, 20] < 1e-3 * recorded.excess[:, 0]).all())
        True
    """

    def __init__(self, engine: Engine, batch: TaskBatch) -> None:
        self.engine, self.batch = engine, batch
        self._view = View()

    @property
    def num_items(self) -> int:
        return self.batch.num_problems

    def init(self) -> State:
        start = self.batch.start
        seen = self.engine.observe_first(self.batch)
        point = Point(start, seen.loss, seen.grad)
        remembers = self.engine.passes_over or not self.engine.is_monotone
        best = point._asdict() if remembers else {}
        return _state(point, self.engine.init(point, seen), self._view.init(point), best)

    @torch.no_grad()
    def step(self, step: int, state: State) -> ProcessStep:
        point, memory = Point(**sub_state(state, "point.")), sub_state(state, "memory.")
        proposal, viewed = self._propose(point, memory), sub_state(state, "view.")
        tried = try_step(self.engine, self.batch, point, proposal, memory)
        best = sub_state(state, "best.")
        if best:
            best = lowest(Point(**best), tried)[0]._asdict()
        viewed_after = self._view.learn(point, proposal, tried.taken, viewed)
        return ProcessStep(
            self._view.show(step, point, proposal, viewed),
            _state(tried.after, tried.memory, viewed_after, best),
        )

    def result(self, state: State) -> Tensor:
        return self._end(state)[0]

    def score(self, state: State, step: int, observation: StepObservation) -> Tensor:
        del step, observation
        return self._end(state)[1] - self.batch.reference_loss

    def _propose(self, point: Point, memory: Memory) -> Proposal:
        return within(self.batch.reach, point, self.engine.propose(point, memory))

    def _end(self, state: State) -> tuple[Tensor, Tensor]:
        """What is returned of each item that stops in this state, and the loss there."""
        best = sub_state(state, "best.")
        if not self.engine.is_monotone:
            return best["params"], best["loss"]
        point = Point(**sub_state(state, "point."))
        params, loss = point.params, point.loss
        if self.engine.completes:
            move = self._propose(point, sub_state(state, "memory.")).move
            everything = torch.ones_like(loss, dtype=torch.bool)
            params, loss = completed(self.batch, point, move, everything)[:2]
        if best:
            below = lies_below(best["loss"], loss)
            params = torch.where(below.unsqueeze(1), best["params"], params)
            loss = torch.where(below, best["loss"], loss)
        return params, loss

    def select(self, index: Tensor) -> "EngineProcess":
        return EngineProcess(self.engine, self.batch.select(index))


def _state(point: Point, memory: Memory, viewed: Memory, best: Memory) -> State:
    return {
        **nested_state(point._asdict(), "point."),
        **nested_state(memory, "memory."),
        **nested_state(viewed, "view."),
        **nested_state(best, "best."),
    }


@final
@dataclass(frozen=True)
class Descents(ProcessFamily):
    """Problems of a family under an engine."""

    engine: Engine
    family: TaskFamily

    def sample(
        self,
        num_items: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> EngineProcess:
        batch = self.family.sample(num_items, generator, dtype=dtype, device=device)
        return EngineProcess(self.engine, batch)
