"""The contract of a stop rule as a check."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from haltwise._core.tensors import map_tensors, select_state
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import LevelRule, StopRule, decide_all, decisions
from haltwise.testing.assertions import (
    equal,
    expect,
    expect_items,
    expect_unchanged,
    seeded,
    snapshot,
)

__all__ = ["check_stop_rule", "example_trajectory"]

_NUM_ITEMS, _NUM_STEPS = 24, 10


def check_stop_rule(rule: StopRule, trajectory: Trajectory | None = None) -> None:
    """Check what sessions, early exit and calibration take for granted of a stop rule.

    - `init` and `step` are pure: neither the memory nor the observation is written to, and the
      rule itself remembers nothing.
    - Items do not see each other: in any order, and when others have left, they are decided alike.
    - Nothing observed after step t changes a decision at t.
    - `why` indexes `reasons`, which are words.
    - It works in float32 and in float64, and a loss that is not finite is bad for its item alone.
    - The levels of a `LevelRule`, which calibration tries together, decide as each does alone.

    Args:
        rule: In any settings; those that stop some items early and others late show most.
        trajectory: What is decided on, in float64, with all that the rule reads, of 3 or more
            items and steps; noisy, falling losses with the outputs of every method of this
            package if None.

    Raises:
        AssertionError: The rule breaks the contract; the message says how.

    Examples:
        >>> from haltwise.stop_rules import FixedBudget, Patience
        >>> check_stop_rule(Patience(3) | FixedBudget(8))
    """
    if trajectory is None:
        trajectory = example_trajectory()
    _check_reasons(rule)
    _check_steps(rule, trajectory)
    _check_steps(rule, map_tensors(trajectory, lambda value: value.float()))
    decided = _decide(rule, trajectory)
    _check_future(rule, trajectory, decided)
    _check_order(rule, trajectory, decided)
    _check_leaving(rule, trajectory, decided)
    _check_nonfinite(rule, trajectory, decided)
    if isinstance(rule, LevelRule):
        _check_levels(rule, trajectory)


def example_trajectory(seed: int = 0) -> Trajectory:
    """Noisy, falling losses with everything that rules of this package read, in float64."""
    generator = seeded(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(_NUM_ITEMS, *shape, generator=generator, dtype=torch.float64)

    fall = torch.linspace(2, -2, _NUM_STEPS + 1, dtype=torch.float64)
    slope = fall[:-1].unsqueeze(1)
    loss = (fall + 0.7 * noise(_NUM_STEPS + 1)).exp()
    signals = noise(_NUM_STEPS, len(SIGNALS))
    signals[..., SIGNALS.index("step")] = torch.arange(_NUM_STEPS, dtype=torch.float64)
    signals[..., SIGNALS.index("loss")] = loss[:, :-1]
    return Trajectory(
        loss=loss,
        excess=loss + 0.1 * noise(_NUM_STEPS + 1),
        log_grad_norm=fall + noise(_NUM_STEPS + 1),
        signals=signals,
        readouts=noise(_NUM_STEPS, 3),
        outputs={
            "increments": slope + noise(_NUM_STEPS, 2),
            "hazard_logits": -slope + noise(_NUM_STEPS, 2),
            "halting_logits": -slope - 2 + noise(_NUM_STEPS, 2),
            "hold_logits": noise(_NUM_STEPS),
        },
    )


def _decide(rule: StopRule, trajectory: Trajectory) -> Tensor:
    """Which of the reasons stops each item at each step, -1 where none does, int64 [T, B]."""
    memory = rule.init(trajectory.num_items, trajectory.loss)
    found = []
    for observation in trajectory:
        stop, memory = rule.step(observation, memory)
        found.append(_reasons_given(rule, stop, memory))
    return torch.stack(found)


def _reasons_given(rule: StopRule, stop: Tensor, memory: dict[str, Tensor]) -> Tensor:
    return torch.where(stop, rule.why(stop, memory), -1)


def _check_reasons(rule: StopRule) -> None:
    reasons: object = rule.reasons
    expect(
        isinstance(reasons, tuple)
        and len(reasons) > 0
        and all(isinstance(words, str) and words for words in reasons),
        f"reasons must be a tuple of at least one sentence, got {reasons!r}",
    )


def _check_steps(rule: StopRule, trajectory: Trajectory) -> None:
    """Purity, and the kinds of all that a rule returns."""
    num_items = trajectory.num_items
    memory = rule.init(num_items, trajectory.loss)
    expect_items(memory, num_items, "memory")
    for observation in trajectory:
        where = f"at step {observation.step} in {trajectory.loss.dtype}"
        before, seen = snapshot(memory), snapshot(_contents(observation))
        stop, after = rule.step(observation, memory)
        expect(
            isinstance(stop, Tensor) and stop.dtype == torch.bool and stop.shape == (num_items,),
            f"step must return a bool tensor of shape [{num_items}] {where}, got {stop!r}",
        )
        expect_unchanged(memory, before, f"step wrote to the memory it was given {where}")
        expect_unchanged(
            _contents(observation), seen, f"step wrote to the observation it was given {where}"
        )
        again, _ = rule.step(observation, memory)
        expect(equal(stop, again), f"step decides otherwise when it is called again {where}")
        expect_items(after, num_items, "memory")
        expect(
            _kinds(after) == _kinds(memory),
            f"the memory changes its names, dtypes or shapes {where}: {_kinds(memory)} became "
            f"{_kinds(after)}",
        )
        why: object = rule.why(stop, after)
        expect(
            isinstance(why, Tensor) and why.dtype == torch.int64 and why.shape == (num_items,),
            f"why must return an int64 tensor of shape [{num_items}] {where}, got {why!r}",
        )
        assert isinstance(why, Tensor)
        given = why[stop]
        expect(
            bool(((given >= 0) & (given < len(rule.reasons))).all()),
            f"why must index the {len(rule.reasons)} reasons {where}, got {given.tolist()}",
        )
        memory = after


def _check_future(rule: StopRule, trajectory: Trajectory, decided: Tensor) -> None:
    other = map_tensors(trajectory, _disturb)
    for step in range(trajectory.num_steps - 1):
        altered = _join_steps(trajectory, other, step + 1)
        expect(
            equal(_decide(rule, altered)[: step + 1], decided[: step + 1]),
            f"a decision made by step {step} changes with what is observed after it",
        )
    expect(
        equal(_decide(rule, trajectory), decided),
        "the same trajectory is decided otherwise the second time; what is remembered belongs into "
        "the memory, not into the rule",
    )


def _disturb(value: Tensor) -> Tensor:
    return value + 3 * torch.randn(value.shape, generator=seeded(1), dtype=value.dtype)


def _check_order(rule: StopRule, trajectory: Trajectory, decided: Tensor) -> None:
    order = torch.randperm(trajectory.num_items, generator=seeded(2))
    memory = select_state(rule.init(trajectory.num_items, trajectory.loss), order)
    for observation in trajectory.select(order):
        stop, memory = rule.step(observation, memory)
        expect(
            equal(_reasons_given(rule, stop, memory), decided[observation.step, order]),
            f"items are decided otherwise in another order, first at step {observation.step}",
        )


def _check_leaving(rule: StopRule, trajectory: Trajectory, decided: Tensor) -> None:
    """A third of the items stay from each step on."""
    for leave_at in range(trajectory.num_steps):
        order = torch.randperm(trajectory.num_items, generator=seeded(3 + leave_at))
        kept = order[: max(1, trajectory.num_items // 3)]
        memory = rule.init(trajectory.num_items, trajectory.loss)
        steps = zip(trajectory, trajectory.select(kept), strict=True)
        for whole, part in steps:
            if whole.step == leave_at:
                memory = select_state(memory, kept)
            stayed = whole.step >= leave_at
            stop, memory = rule.step(part if stayed else whole, memory)
            if stayed:
                expect(
                    equal(_reasons_given(rule, stop, memory), decided[whole.step, kept]),
                    f"items are decided otherwise at step {whole.step} when others leave at step "
                    f"{leave_at}; keep what belongs to an item in the memory's row",
                )


def _check_nonfinite(rule: StopRule, trajectory: Trajectory, decided: Tensor) -> None:
    others = torch.arange(1, trajectory.num_items)
    for value in (math.nan, math.inf):
        loss = trajectory.loss.clone()
        loss[0, 1:] = value
        found = _decide(rule, replace(trajectory, loss=loss))
        expect(
            equal(found[:, others], decided[:, others]),
            f"a loss of {value} changes what is decided of other items",
        )


def _check_levels(rule: LevelRule, trajectory: Trajectory) -> None:
    settings: Any = rule
    lower = replace(settings, **{rule.level_setting: getattr(rule, rule.level_setting) - 0.5})
    for one, decided in decide_all([rule, lower, rule], trajectory):
        expect(
            equal(decided, decisions(one, trajectory)),
            f"{one} decides otherwise when it is tried together with other levels",
        )


def _contents(observation: StepObservation) -> dict[str, Tensor]:
    fields = observation._asdict()
    known = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    return {**known, **observation.outputs}


def _kinds(memory: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, list[int]]]:
    return {name: (value.dtype, list(value.shape)) for name, value in memory.items()}


def _join_steps(first: Trajectory, then: Trajectory, num_steps: int) -> Trajectory:
    """Steps 0..num_steps-1 of the one and the later steps of the other."""

    def join(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat((one[:, :num_steps], other[:, num_steps:]), 1)

    changed = {
        name: join(value, getattr(then, name))
        for name, value in vars(first).items()
        if isinstance(value, Tensor) and name != "final"
    }
    outputs = {name: join(value, then.outputs[name]) for name, value in first.outputs.items()}
    return replace(first, **changed, outputs=outputs)
