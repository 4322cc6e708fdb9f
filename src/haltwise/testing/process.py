"""The contract of a process as a check."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise.halting.session import HaltingSession
from haltwise.processes.base import Process
from haltwise.processes.observation import StepObservation
from haltwise.rollout.early_exit import Outcome, run_until_halted
from haltwise.stop_rules import ReturnedIterate, StopPolicy, StopRule
from haltwise.stop_rules.base import Memory
from haltwise.testing.assertions import (
    close,
    expect,
    expect_alike,
    expect_items,
    expect_shape,
    tensors,
    unchanged,
)

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
    num_items = process.num_items
    expect(num_items >= 2, f"give a process of at least 2 items, got {num_items}")
    expect_items(process.init(), num_items, "the state")
    with unchanged("the state at step 0 is another after a step", process.init()):
        loss = process.step(0, process.init()).observation.loss
    expect(loss.isfinite().all(), f"the loss at the start must be finite, got {loss.tolist()}")
    run = _run(process, num_steps)
    again = _run(process, num_steps)
    expect_alike(again, run, "{} differs when the process is run a second time")
    if tolerance is None:
        tolerance = 1e-12 if loss.dtype == torch.float64 else 1e-5
    for items in ([num_items - 1, 0], [0]):
        index = torch.tensor(items, device=loss.device)
        part = process.select(index)
        expect(
            part.num_items == len(items),
            f"a selection of {len(items)} items is a process of {part.num_items}",
        )
        expect_alike(
            _run(part, num_steps),
            {name: value[index] for name, value in run.items()},
            "{} of an item among others is not what it is in a selection",
            tolerance,
            1.0,
        )
    _check_early_exit(process, run, num_steps, tolerance)


def _run(process: Process, num_steps: int) -> dict[str, Tensor]:
    """Return results at steps 0..T, and observations and scores at steps 0..T-1, by name."""
    num_items, state = process.num_items, process.init()
    found = {"the result at step 0": process.result(state).clone()}
    for step in range(num_steps):
        kept, result = {n: v.clone() for n, v in state.items()}, process.result(state)
        observation, after = process.step(step, state)
        expect(
            observation.step == step,
            f"the observation at step {step} says that it is of step {observation.step}",
        )
        expected = found[f"the result at step {step}"]
        expect(
            close(result, expected) and close(process.result(state), expected),
            f"the result at step {step} changes when the next step is taken",
        )
        score = process.score(state, step, observation)
        expect(
            close(score, process.score(kept, step, observation)),
            f"the score at step {step} changes when the next step is taken",
        )
        for name, value in {**tensors(observation), "score": score}.items():
            ndim = 2 if name in ("signals", "readout") else 1
            expect(
                value.ndim == ndim and len(value) == num_items,
                f"the {name} must have shape [{num_items}{', ...' * (ndim - 1)}], got "
                f"{list(value.shape)}",
            )
            found[f"the {name} at step {step}"] = value
        expect_items(after, num_items, "the state")
        state, result = after, process.result(after)
        expect_shape(result, expected.shape, f"the result at step {step + 1}")
        found[f"the result at step {step + 1}"] = result.clone()
    return found


@final
@dataclass(frozen=True)
class _StopAt(StopRule):
    """Stop each item at a step of its own."""

    steps: Tensor

    def init(self, num_items: int, like: Tensor) -> Memory:
        return {"last": self.steps}

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return observation.step >= memory["last"], memory


def _check_early_exit(
    process: Process, run: dict[str, Tensor], num_steps: int, tolerance: float
) -> None:
    results = torch.stack([run[f"the result at step {step}"] for step in range(num_steps + 1)])
    items = torch.arange(process.num_items, device=results.device)
    price = torch.ones_like(run["the loss at step 0"])
    for stops in (0 * items, items % num_steps, 0 * items + num_steps - 1):
        for returns in (ReturnedIterate.CURRENT, ReturnedIterate.NEXT):
            session = HaltingSession(StopPolicy(_StopAt(stops), returns), price)
            found = run_until_halted(process, session, num_steps)
            expect(
                (found.outcome == Outcome.HALTED).all(),
                f"some items are not finite within {num_steps} steps; check fewer steps",
            )
            ends = stops + (returns is ReturnedIterate.NEXT)
            expect(
                close(found.result, results[ends, items], tolerance, 1.0)
                and bool((found.num_updates == ends).all())
                and bool((found.num_gradients == stops + 1).all()),
                f"run_until_halted does not return the results of steps {ends.tolist()} for items "
                f"that stop at steps {stops.tolist()}",
            )
