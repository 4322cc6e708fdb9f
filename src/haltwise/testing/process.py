"""The contract of a process as a check."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise.halting.session import HaltingSession
from haltwise.processes.base import Process
from haltwise.processes.observation import StepObservation
from haltwise.rollout.early_exit import Outcome, run_until_halted
from haltwise.stop_rules import FixedBudget, ReturnedIterate, StopPolicy, StopRule
from haltwise.stop_rules.base import Memory
from haltwise.testing.assertions import equal, expect, expect_items, expect_unchanged, snapshot

__all__ = ["check_process"]


def check_process(process: Process, *, num_steps: int = 5, tolerance: float | None = None) -> None:
    """Check what recording, early exit and sessions take for granted of a process.

    - State, observations, results and scores have the items along dimension 0.
    - It runs alike every time, and a run leaves its beginning as it was.
    - The loss at the start is finite.
    - The result of a state stays what it is when a step takes the memory of that state, and so
      does the score.
    - Items do not see each other: a selection runs as the items do among the others.
    - `run_until_halted` gives what the steps give by hand.

    Args:
        process: Of 2 items or more, best in float64.
        num_steps: Steps to take, at least 1; results and losses must stay finite that long.
        tolerance: Relative and absolute, between an item among others and by itself: kernels may
            round by the size of the batch. 0 asks for the same bits; if None 1e-12 in float64 and
            1e-5 in float32.

    Raises:
        AssertionError: The process breaks the contract; the message says how.

    Examples:
        >>> from haltwise.processes import OptimizationProcess
        >>> from haltwise.tasks import family
        >>> from haltwise.update_rules import SGD
        >>> problems = family("quadratic-10d").sample(
        ...     4, torch.Generator().manual_seed(0), dtype=torch.float64
        ... )
        >>> check_process(OptimizationProcess(SGD(0.01), problems))
    """
    expect(process.num_items >= 2, f"give a process of at least 2 items, got {process.num_items}")
    _check_start(process)
    run = _run(process, num_steps)
    if tolerance is None:
        tolerance = 1e-12 if run.observations[0].loss.dtype == torch.float64 else 1e-5
    for name, one, other in _pairs(run, _run(process, num_steps)):
        expect(equal(one, other), f"{name} differs when the process is run a second time")
    _check_selection(process, run, tolerance)
    for returns in (ReturnedIterate.CURRENT, ReturnedIterate.NEXT):
        for rule in (FixedBudget(0), FixedBudget(num_steps - 1), _Staggered(num_steps)):
            _check_early_exit(process, run, StopPolicy(rule, returns), tolerance)


class _Run(NamedTuple):
    """What was seen in T steps."""

    results: list[Tensor]
    """Of the states at steps 0..T."""
    observations: list[StepObservation]
    """Of steps 0..T-1."""
    scores: list[Tensor]
    """Of steps 0..T-1."""


@final
@dataclass(frozen=True)
class _Staggered(StopRule):
    """Stop items at different steps, by their number in the batch."""

    period: int

    def init(self, num_items: int, like: Tensor) -> Memory:
        return {"last": torch.arange(num_items, device=like.device) % self.period}

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return observation.step >= memory["last"], memory


def _check_start(process: Process) -> None:
    before = snapshot(process.init())
    expect_items(before, process.num_items, "the state")
    observation, _ = process.step(0, process.init())
    expect_unchanged(process.init(), before, "the state at step 0 is another after a step")
    expect(
        bool(observation.loss.isfinite().all()),
        f"the loss at the start must be finite, got {observation.loss.tolist()}",
    )


def _run(process: Process, num_steps: int) -> _Run:
    num_items, state = process.num_items, process.init()
    run = _Run([process.result(state).clone()], [], [])
    for step in range(num_steps):
        kept, result = snapshot(state), process.result(state)
        observation, after = process.step(step, state)
        expect(
            observation.step == step,
            f"the observation at step {step} says that it is of step {observation.step}",
        )
        expect(
            equal(result, run.results[-1]) and equal(process.result(state), run.results[-1]),
            f"the result at step {step} changes when the next step is taken",
        )
        score = process.score(state, step, observation)
        expect(
            equal(score, process.score(kept, step, observation)),
            f"the score at step {step} changes when the next step is taken",
        )
        for name, value, ndim in (
            ("the observed loss", observation.loss, 1),
            ("the score", score, 1),
            ("log_grad_norm", observation.log_grad_norm, 1),
            ("the signals", observation.signals, 2),
            ("the readout", observation.readout, 2),
        ):
            expect(
                value is None or (value.ndim == ndim and len(value) == num_items),
                f"{name} must have the shape [{num_items}{', ...' * (ndim - 1)}], got "
                f"{None if value is None else list(value.shape)}",
            )
        state = after
        expect_items(state, num_items, "the state")
        result = process.result(state)
        expect(
            result.shape == run.results[0].shape,
            f"the result at step {step + 1} has the shape {list(result.shape)}, but that at step 0 "
            f"{list(run.results[0].shape)}",
        )
        run.results.append(result.clone())
        run.observations.append(observation)
        run.scores.append(score)
    return run


def _pairs(run: _Run, other: _Run) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What two runs have in common, by name."""
    for step, (one, two) in enumerate(zip(run.results, other.results, strict=True)):
        yield f"the result at step {step}", one, two
    for step, (one, two) in enumerate(zip(run.scores, other.scores, strict=True)):
        yield f"the score at step {step}", one, two
    for first, second in zip(run.observations, other.observations, strict=True):
        for name in ("loss", "log_grad_norm", "signals", "readout"):
            value, twin = getattr(first, name), getattr(second, name)
            if value is not None:
                yield f"{name} at step {first.step}", value, twin


def _check_selection(process: Process, run: _Run, tolerance: float) -> None:
    last = process.num_items - 1
    for items in ([last, 0], [0]):
        index = torch.tensor(items, device=run.results[0].device)
        part = process.select(index)
        expect(
            part.num_items == len(items),
            f"a selection of {len(items)} items is a process of {part.num_items}",
        )
        expect_items(part.init(), len(items), "the state of a selection")
        for name, whole, alone in _pairs(run, _run(part, len(run.scores))):
            expect(
                _close(whole[index], alone, tolerance),
                f"{name} of an item among others is not what it is in a selection",
            )


def _check_early_exit(process: Process, run: _Run, policy: StopPolicy, tolerance: float) -> None:
    loss = run.observations[0].loss
    found = run_until_halted(
        process, HaltingSession(policy, torch.ones_like(loss)), len(run.observations)
    )
    expect(
        bool((found.outcome == Outcome.HALTED).all()),
        f"some items are not finite within {len(run.observations)} steps; check fewer steps",
    )
    memory = policy.rule.init(process.num_items, loss)
    waiting = torch.ones_like(loss, dtype=torch.bool)
    for observation in run.observations:
        stop, memory = policy.rule.step(observation, memory)
        end = observation.step + (policy.returns is ReturnedIterate.NEXT)
        now = stop & waiting
        expect(
            _close(found.result[now], run.results[end][now], tolerance)
            and bool((found.num_updates[now] == end).all())
            and bool((found.num_gradients[now] == observation.step + 1).all()),
            f"run_until_halted does not return the results of step {end} for items that stop at "
            f"step {observation.step}",
        )
        waiting = waiting & ~stop


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return equal(one, other)
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
