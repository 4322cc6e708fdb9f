"""Early exit: items that halt leave the batch, so what they save is not computed."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Self, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.plugins import comes_with_the_package
from haltwise._core.settings import whole_number
from haltwise._core.tensors import (
    along,
    are_finite,
    nested_state,
    select_state,
    undisturbed,
    widened,
)
from haltwise.halting.session import Decision, HaltingSession
from haltwise.processes.base import Process, advanced, begun, result_of, selected
from haltwise.processes.observation import StepObservation
from haltwise.processes.optimization import OptimizationProcess
from haltwise.rollout.rows import Rows, gather_rows, scatter_rows
from haltwise.rollout.step_graphs import (
    Loop,
    StepGraphs,
    advance_all,
    batch_kind,
)
from haltwise.stop_rules import ReturnedIterate

__all__ = ["Execution", "Outcome", "RowWatch", "Watch", "run_until_halted"]

_FEWEST = 2  # steps taken one by one and without gaps, so that all memories have their shapes
_PAYS = 0.75  # share of the items, or less, that must be left for it to pay to move them


@final
class Outcome(IntEnum):
    """The way an item ended."""

    HALTED = 0
    """The stop rule ended it; see `Execution.reason`."""
    OUT_OF_STEPS = 1
    """It reached the last step allowed."""
    NONFINITE = 2
    """Its loss, gradient or next iterate was not finite; the iterate of that step is returned."""
    TAKEN = 3
    """A watch took it away, to go on with it in another way."""


@final
@dataclass(frozen=True)
class Execution:
    """Results of B items.

    Attributes:
        result: What is returned of each item, shape [B, ...].
        loss: The loss observed there, NaN where it was not observed, shape [B].
        num_updates: The s of the theta_s returned, int64 [B].
        num_gradients: Steps evaluated, each with a gradient where there are any, int64 [B].
        outcome: `Outcome` values, int64 [B].
        reason: Index into `reasons`: why the rule stopped it, -1 where it did not; int64 [B].
        reasons: Why the rule may stop an item, in words.
    """

    result: Tensor
    loss: Tensor
    num_updates: Tensor
    num_gradients: Tensor
    outcome: Tensor
    reason: Tensor
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        ends = ", ".join(
            f"{count:,} {outcome.name.lower().replace('_', ' ')}"
            for outcome in Outcome
            if (count := int((self.outcome == outcome).sum()))
        )
        steps = widened(self.num_updates).mean() if len(self.outcome) else 0.0
        return f"Execution({len(self.outcome):,} items: {ends or 'none'}; {steps:.1f} steps each)"


Watch = Callable[[Tensor, StepObservation], Tensor | None]
"""Told at every step which items run (int64 [M]) and what was observed of them; returns which of
them are to leave (bool [M]), or None."""


class RowWatch(ABC):
    """A watch whose memory is in rows, so that steps that it watches can be recorded as a graph.

    From the third step on it may be told of item B, which is none, and it copies no values to the
    host where the number of the step is a tensor.
    """

    @property
    @abstractmethod
    def rows(self) -> Rows:
        """All that its answers depend on beside its settings; changed in place."""

    @abstractmethod
    def __call__(self, items: Tensor, observation: StepObservation) -> Tensor | None:
        """See `Watch`."""

    @property
    @abstractmethod
    def kind(self) -> tuple[object, ...]:
        """Its settings."""

    @abstractmethod
    def part(self, items: Tensor) -> Self:
        """A copy that watches the items at `items` (int64 [M]), B for none."""

    @abstractmethod
    def take_back(self, items: Tensor, part: Self) -> None:
        """Take over what has become of the `part` for these items."""


@undisturbed()
def run_until_halted(
    process: Process,
    session: HaltingSession,
    max_steps: int,
    *,
    watch: Watch | RowWatch | None = None,
    graphs: StepGraphs | None = None,
) -> Execution:
    """Run every item until its session stops it, evaluating nothing for those that have ended.

    An item out of steps ends with its last update applied, or, with `ReturnedIterate.BEST`, at the
    best iterate it observed. Nothing is raised for an item that goes wrong.

    On an accelerator a step of few items takes as long as launching it. With `graphs`, steps are
    recorded and launched many at once: items that have ended stay in their places, unseen, until
    so many have that it pays to move the others together. That is done where all that runs is of
    this package: a deterministic loss, an update rule, a halting model and a stop rule. Anything
    of the caller's may read memory or values that a recording cannot know of, so it is asked step
    by step.

    Args:
        process: B items.
        session: When to stop and what to return.
        max_steps: Steps an item may cost at most, at least 1.
        watch: Told of every step. Items that it takes away end as TAKEN, whatever the session says.
        graphs: Where steps are recorded, if they are to be; of this process' rule and this
            session's model alone.

    Raises:
        InputError: `max_steps` is below 1.
    """
    max_steps = whole_number("max_steps", max_steps)
    run = _Run(process, session, watch, max_steps)
    advance_all(run, run.current[:1].numel(), graphs)
    return run.execution()


class _Observed(NamedTuple):
    """What is known after a step of M items, beside what they carry."""

    loss: Tensor
    current: Tensor
    moved: Tensor
    finite: Tensor
    taken: Tensor | None
    decision: Decision
    halts: Tensor


@final
class _Run:
    """Items that run side by side, and what has become of all.

    Attributes:
        num_steps: Steps taken; a tensor [] where they are recorded, as is `max_steps`.
        items: Which of the B items run, int64 [M]; B where a place is empty.
        current: The results if they stop now, shape [M, ...].
        results: What has become of all, rows of B + 1.
    """

    def __init__(
        self,
        process: Process,
        session: HaltingSession,
        watch: Watch | RowWatch | None,
        max_steps: int,
    ) -> None:
        self.process, self.session, self.watch = process, session, watch
        self.num_steps: int | Tensor = 0
        self.max_steps: int | Tensor = max_steps
        self.state = begun(process)
        self.current = result_of(process, self.state)
        self.num_items = process.num_items
        self.items = torch.arange(process.num_items, device=self.current.device)
        self.keeps_best = session.policy.returns is ReturnedIterate.BEST
        num_rows = process.num_items + 1
        none = torch.zeros(num_rows, dtype=torch.int64, device=self.current.device)
        self.results: Rows = {
            "result": torch.cat((self.current, torch.zeros_like(self.current[:1]))),
            "counts": none.new_zeros(num_rows, 2),  # steps, and the reason of the stop rule
            "flags": none.new_zeros(num_rows, 3, dtype=torch.bool),  # finite, taken, takes update
        }
        if self.keeps_best:
            self.results["num_updates"] = none

    @property
    def leaves_gaps(self) -> bool:
        """Whether moving many items costs more than leaving some places empty."""
        return not self.items.is_cpu

    def step(self) -> None:
        """Take a step, after which those that end leave."""
        seen = self._advance()
        ended = seen.halts
        if self.num_steps >= self.max_steps:
            ended = torch.ones_like(ended)
        elif not ended.any():
            return
        self._settle(seen)
        kept = (~ended & (self.items < self.num_items)).nonzero().squeeze(1)
        if self.leaves_gaps and self.kind and len(kept) > _PAYS * len(self.items):
            self._leave(seen, ended)
        else:
            self._select(kept)

    def step_in_place(self) -> None:
        """Take a step, after which the places of those that end are empty."""
        seen = self._advance()
        ended = seen.halts | (self.num_steps >= self.max_steps)
        self._settle(seen)
        self._leave(seen, ended)

    def _advance(self) -> _Observed:
        # Steps are numbered by a tensor in an `OptimizationProcess` only.
        observation, after = advanced(self.process, self.num_steps, self.state)  # type: ignore[arg-type]
        taken = None if self.watch is None else self.watch(self.items, observation)
        moved = self.process.result(after)
        finite = _are_finite(observation, moved)
        decision = self.session.observe(observation)
        halts = decision.stop | ~finite
        if taken is not None:
            halts |= taken
        loss, current = observation.loss, self.current
        self._begin_losses(loss)
        if self.keeps_best:
            self._keep_best(current, loss)
        self.state, self.current, self.num_steps = after, moved, self.num_steps + 1
        return _Observed(loss, current, moved, finite, taken, decision, halts)

    def _keep_best(self, current: Tensor, loss: Tensor) -> None:
        rows = self.items
        if isinstance(self.num_steps, Tensor) or self.num_steps > 0:
            better = loss < self.results["loss"].index_select(0, rows)
            rows = rows.masked_fill(~better, self.num_items)
        self.results["result"].index_copy_(0, rows, current)
        self.results["loss"].index_copy_(0, rows, loss)
        self.results["num_updates"].index_copy_(0, rows, self._number(self.num_steps))

    def _number(self, value: int | Tensor) -> Tensor:
        """A number for all that run, int64 [M]."""
        return torch.zeros_like(self.items) + value

    def _begin_losses(self, like: Tensor) -> None:
        if "loss" not in self.results:
            self.results["loss"] = like.new_full((self.num_items + 1,), torch.nan)

    def _settle(self, seen: _Observed) -> None:
        """Write down what becomes of those that end; where items go on, it is written anew."""
        takes = seen.finite & (seen.decision.takes_update | ~seen.halts)
        taken = torch.zeros_like(takes) if seen.taken is None else seen.taken
        written = {
            "counts": torch.stack((self._number(self.num_steps), seen.decision.reason), 1),
            "flags": torch.stack((seen.finite, taken, takes), 1),
        }
        if not self.keeps_best:
            result = torch.where(along(takes, seen.moved), seen.moved, seen.current)
            written |= {"result": result, "loss": seen.loss}
        for name, value in written.items():
            self.results[name].index_copy_(0, self.items, value)

    def _leave(self, seen: _Observed, ended: Tensor) -> None:
        """Leave the places of those that ended empty, at parameters known to be sound."""
        assert isinstance(self.process, OptimizationProcess)
        self.items = torch.where(ended, self.num_items, self.items)
        still = self.items == self.num_items
        self.state = self.process.hold(self.state, seen.current, still)
        self.current = self.process.result(self.state)

    def _select(self, kept: Tensor) -> None:
        """Go on with the places at `kept` (int64 [L]) alone."""
        self.items = self.items[kept]
        if len(kept) == 0:
            return
        self.process, self.state = selected(self.process, kept), select_state(self.state, kept)
        self.current = self.process.result(self.state)
        self.session.select(kept)

    def execution(self) -> Execution:
        """What has become of all."""
        self._begin_losses(self.current)  # of no items, none was observed
        rows = {name: value[:-1] for name, value in self.results.items()}
        count, reason = rows["counts"].unbind(1)
        finite, taken, takes = rows["flags"].unbind(1)
        outcome = torch.where(reason >= 0, int(Outcome.HALTED), int(Outcome.OUT_OF_STEPS))
        outcome = outcome.masked_fill(~finite, int(Outcome.NONFINITE))
        outcome = outcome.masked_fill(taken, int(Outcome.TAKEN))
        loss, num_updates = rows["loss"], rows.get("num_updates")
        if num_updates is None:
            loss, num_updates = loss.masked_fill(takes, torch.nan), count - (~takes).long()
        return Execution(
            rows["result"],
            loss,
            num_updates,
            count,
            outcome,
            reason.masked_fill(outcome != Outcome.HALTED, -1),
            self.session.reasons,
        )

    # -------------------------------------------------------------------------- recorded

    @property
    def kind(self) -> tuple[object, ...] | None:
        """All that steps depend on beside values of tensors; None if they cannot be recorded."""
        if isinstance(self.num_steps, int) and self.num_steps < _FEWEST:
            return None
        process, session, watch = self.process, self.session, self.watch
        if not isinstance(process, OptimizationProcess) or process.batch.stochastic:
            return None
        if not (watch is None or isinstance(watch, RowWatch)):
            return None
        batch = batch_kind(process.batch)
        written = process.batch, process.rule, *session.parts
        if batch is None or not comes_with_the_package(*written):
            return None
        return *batch, *session.kind, type(watch), *(() if watch is None else watch.kind)

    def spread(self, places: int) -> "_RecordedRun":
        """A copy, with so many places."""
        rows, part = self._rows(places), copy.copy(self)
        index = torch.arange(places, device=rows.device)
        part.items = torch.where(rows < self.num_items, index, places)
        part.num_items = places
        index = index.clamp_max(len(self.items) - 1)  # empty places hold something sound
        part.process, part.state = self.process.select(index), select_state(self.state, index)
        part.session = self.session.part(index)
        part.results = gather_rows(self.results, rows)
        if isinstance(self.watch, RowWatch):
            part.watch = self.watch.part(rows)
        part.num_steps = self.items.new_full((), int(self.num_steps))
        part.max_steps = self.items.new_full((), int(self.max_steps))
        return _RecordedRun(part)

    def gather(self, loop: "_RecordedRun") -> None:
        """Go on where a copy has ended, with the items that are left."""
        part, number = loop.run, len(self.items)
        rows = self._rows(part.num_items)
        scatter_rows(self.results, rows, part.results)
        if isinstance(self.watch, RowWatch):
            assert isinstance(part.watch, RowWatch)
            self.watch.take_back(rows, part.watch)
        kept = (part.items[:number] < part.num_items).nonzero().squeeze(1)
        self.num_steps = int(part.num_steps)
        self.state, self.session = part.state, copy.copy(part.session)
        self._select(kept)

    def _rows(self, places: int) -> Tensor:
        """Which item is in each of so many places, int64 [places]."""
        return pad(self.items, (0, places - len(self.items)), value=self.num_items)


@final
class _RecordedRun(Loop):
    """A run whose items stay in their places."""

    def __init__(self, run: _Run) -> None:
        self.run = run

    @property
    def kind(self) -> tuple[object, ...]:
        kind = self.run.kind
        assert kind is not None
        return kind

    def tensors(self) -> dict[str, Tensor]:
        run = self.run
        assert isinstance(run.process, OptimizationProcess)
        assert isinstance(run.max_steps, Tensor)
        watched = nested_state(run.watch.rows, "watch.") if isinstance(run.watch, RowWatch) else {}
        return {
            **_moving(run),
            **nested_state(run.process.tensors(), "process."),
            **nested_state(run.results, "results."),
            **watched,
            "price": run.session.price,
            "max_steps": run.max_steps,
        }

    def advance(self, num_steps: int) -> dict[str, Tensor]:
        run = copy.copy(self.run)
        run.session = copy.copy(run.session)
        run.current = run.process.result(run.state)
        for _ in range(num_steps):
            run.step_in_place()
        return _moving(run)

    def num_left(self) -> int:
        return int((self.run.items < self.run.num_items).sum())


def _moving(run: _Run) -> dict[str, Tensor]:
    """What is new after a step; all else is constant, or changed in place."""
    assert isinstance(run.num_steps, Tensor)
    return {
        "num_steps": run.num_steps,
        "items": run.items,
        **nested_state(run.state, "state."),
        **nested_state(run.session.state(), "session."),
    }


def _are_finite(observation: StepObservation, moved: Tensor) -> Tensor:
    """Which items have a finite loss, gradient and next iterate, bool [M]."""
    finite = are_finite(observation.loss) & are_finite(moved).unsqueeze(-1).flatten(1).all(1)
    if observation.log_grad_norm is not None:
        finite &= are_finite(observation.log_grad_norm)
    return finite
