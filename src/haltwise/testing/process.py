"""The contract of a process as a check."""

import torch
from torch import Tensor

from haltwise._core.tensors import select_state
from haltwise.processes.base import Process, ProcessStep, StepObservation
from haltwise.testing.assertions import (
    close,
    expect,
    expect_alike,
    expect_instance,
    expect_items,
    expect_shape,
    global_randomness_untouched,
    tensors,
    unchanged,
)

__all__ = ["check_process"]


@global_randomness_untouched()
def check_process(process: Process, *, num_steps: int = 5, tolerance: float | None = None) -> None:
    """Check what recording, early exit and sessions take for granted of a process.

    - State, observations, results and scores have the items along dimension 0; results are finite.
    - It runs alike every time, and a run leaves its beginning as it was.
    - The loss at the start is finite.
    - The result of a state stays what it is when a step takes the memory of that state, and so
      does the score.
    - Items do not see each other: a selection, made at any step, runs as the items do among the
      others.

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
    expect_instance(process, Process, "a process")
    expect(num_steps >= 1, f"num_steps must be at least 1, got {num_steps}")
    num_items = process.num_items
    expect(num_items >= 2, f"give a process of at least 2 items, got {num_items}")
    expect_items(process.init(), num_items, "the state")
    with unchanged("the state at step 0 is another after a step", process.init()):
        taken: object = process.step(0, process.init())
    expect_instance(taken, ProcessStep, "what step returns")
    assert isinstance(taken, ProcessStep)
    expect_instance(taken.observation, StepObservation, "the observation of a step")
    loss = taken.observation.loss
    expect_shape(loss, [num_items], "the loss")
    expect(
        loss.is_floating_point(), f"the loss must be of a floating-point dtype, got {loss.dtype}"
    )
    expect(loss.isfinite().all(), f"the loss at the start must be finite, got {loss.tolist()}")
    run = _run(process, num_steps)
    again = _run(process, num_steps)
    expect_alike(again, run, "{} differs when the process is run a second time")
    if tolerance is None:
        tolerance = 1e-12 if loss.dtype == torch.float64 else 1e-5
    for items in ([num_items - 1, 0], [0]):
        kept = torch.tensor(items, device=loss.device)
        for leave_at in range(num_steps):
            expect_alike(
                _run(process, num_steps, kept, leave_at),
                {name: value[kept] for name, value in run.items()},
                "{} of an item among others is not what it is in a selection, made at step "
                f"{leave_at}",
                tolerance,
                1.0,
            )


def _run(
    process: Process, num_steps: int, kept: Tensor | None = None, leave_at: int = 0
) -> dict[str, Tensor]:
    """Name results at steps 0..T, and observations and scores at steps 0..T-1.

    With `kept`, only these items stay from step `leave_at` on.
    """
    state = process.init()
    found: dict[str, Tensor] = {}
    for step in range(num_steps + 1):
        if kept is not None and step == leave_at:
            process = process.select(kept)
            expect_instance(process, Process, "a selection")
            expect(
                process.num_items == len(kept),
                f"a selection of {len(kept)} items is a process of {process.num_items}",
            )
            state = select_state(state, kept) if step else process.init()
            found = {name: value[kept] for name, value in found.items()}
        expect_items(state, process.num_items, "the state")
        result = process.result(state)
        expect_items({"the result": result}, process.num_items, "the process")
        expected = found[f"the result at step {step}"] = result.clone()
        expect_shape(
            result,
            (process.num_items, *found["the result at step 0"].shape[1:]),
            f"the result at step {step}",
        )
        expect(
            result.isfinite().all(), f"the result at step {step} is not finite; check fewer steps"
        )
        if step == num_steps:
            break
        before = {name: value.clone() for name, value in state.items()}
        observation, after = process.step(step, state)
        expect(
            observation.step == step,
            f"the observation at step {step} says that it is of step {observation.step}",
        )
        expect(
            close(result, expected) and close(process.result(state), expected),
            f"the result at step {step} changes when the next step is taken",
        )
        score = process.score(state, step, observation)
        expect_instance(score, Tensor, "the score")
        expect(
            close(score, process.score(before, step, observation)),
            f"the score at step {step} changes when the next step is taken",
        )
        for name, value in {**tensors(observation), "score": score}.items():
            ndim = 2 if name in ("signals", "readout", "params", "grad") else 1
            expect(
                value.ndim == ndim and len(value) == process.num_items,
                f"the {name} must have shape [{process.num_items}{', ...' * (ndim - 1)}], got "
                f"{list(value.shape)}",
            )
            found[f"the {name} at step {step}"] = value
        state = after
    return found
