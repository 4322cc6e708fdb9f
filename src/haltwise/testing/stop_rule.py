"""The contract of a stop rule as a check."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from haltwise._core.settings import got
from haltwise._core.tensors import map_tensors, select_state
from haltwise.processes.signals import SIGNALS
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import LevelRule, StopRule, decide_all, decisions
from haltwise.testing.assertions import (
    close,
    expect,
    expect_instance,
    expect_items,
    expect_kinds,
    global_randomness_untouched,
    normal,
    seeded,
    unchanged,
)

__all__ = ["check_stop_rule"]

_NUM_ITEMS, _NUM_STEPS = 24, 10


@global_randomness_untouched()
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
    expect_instance(rule, StopRule, "a stop rule")
    if trajectory is None:
        trajectory = _example()
    reasons: object = rule.reasons
    expect(
        isinstance(reasons, tuple)
        and len(reasons) > 0
        and all(isinstance(words, str) and words for words in reasons),
        f"reasons must be a tuple of at least one sentence, got {reasons!r}",
    )
    _check_steps(rule, trajectory)
    _check_steps(rule, map_tensors(trajectory, lambda value: value.float()))
    decided = _decide(rule, trajectory)
    _check_future(rule, trajectory, decided)
    _check_company(rule, trajectory, decided)
    if isinstance(rule, LevelRule):
        _check_levels(rule, trajectory)


def _example() -> Trajectory:
    """Draw noisy, falling losses with everything that rules of this package read, in float64."""
    generator = seeded(0)

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


def _decide(
    rule: StopRule, trajectory: Trajectory, kept: Tensor | None = None, leave_at: int = 0
) -> Tensor:
    """Number the reason that stops each item at each step, -1 where none does, int64 [T, B].

    With `kept`, only these items stay from step `leave_at` on, and only those steps are returned.
    """
    memory = rule.init(trajectory.num_items, trajectory.loss)
    found = []
    selected = trajectory if kept is None else trajectory.select(kept)
    for whole, part in zip(trajectory, selected, strict=True):
        if kept is not None and whole.step == leave_at:
            memory = select_state(memory, kept)
        stop, memory = rule.step(part if whole.step >= leave_at else whole, memory)
        found.append(torch.where(stop, rule.why(stop, memory), -1))
    return torch.stack(found[leave_at:])


def _check_steps(rule: StopRule, trajectory: Trajectory) -> None:
    num_items = trajectory.num_items
    first = memory = rule.init(num_items, trajectory.loss)
    expect_items(memory, num_items, "the memory")
    for observation in trajectory:
        where = f"at step {observation.step} in {trajectory.loss.dtype}"
        with (
            unchanged(f"step wrote to the memory it was given {where}", memory),
            unchanged(f"step wrote to the observation it was given {where}", observation),
        ):
            decided: Any = rule.step(observation, memory)
        expect(
            isinstance(decided, tuple) and len(decided) == 2,
            f"step must return where items stop and the memory {where}, {got(decided)}",
        )
        stop, after = decided
        expect(
            isinstance(stop, Tensor) and stop.dtype == torch.bool and stop.shape == (num_items,),
            f"step must return a bool tensor of shape [{num_items}] {where}, got {stop!r}",
        )
        again, _ = rule.step(observation, memory)
        expect(close(stop, again), f"step decides otherwise when it is called again {where}")
        expect_kinds(after, first, f"the memory {where}")
        why: Any = rule.why(stop, after)
        expect(
            isinstance(why, Tensor) and why.dtype == torch.int64 and why.shape == (num_items,),
            f"why must return an int64 tensor of shape [{num_items}] {where}, got {why!r}",
        )
        given = why[stop]
        expect(
            ((given >= 0) & (given < len(rule.reasons))).all(),
            f"why must index the {len(rule.reasons)} reasons {where}, got {given.tolist()}",
        )
        memory = after


def _check_future(rule: StopRule, trajectory: Trajectory, decided: Tensor) -> None:
    for step in range(trajectory.num_steps - 1):

        def disturb(value: Tensor, seen: int = step + 1) -> Tensor:
            noise = 3 * normal(1, *value.shape).to(value)
            return torch.cat((value[:, :seen], (value + noise)[:, seen:]), 1)

        altered = map_tensors(replace(trajectory, final=None), disturb)
        expect(
            close(_decide(rule, altered)[: step + 1], decided[: step + 1]),
            f"a decision made by step {step} changes with what is observed after it",
        )
    expect(
        close(_decide(rule, trajectory), decided),
        "the same trajectory is decided otherwise the second time; what is remembered belongs into "
        "the memory, not into the rule",
    )


def _check_company(rule: StopRule, trajectory: Trajectory, decided: Tensor) -> None:
    num_items = trajectory.num_items
    order = torch.randperm(num_items, generator=seeded(2))
    expect(
        close(_decide(rule, trajectory, order), decided[:, order]),
        "items are decided otherwise in another order",
    )
    for leave_at in range(trajectory.num_steps):
        kept = torch.randperm(num_items, generator=seeded(3 + leave_at))[: max(1, num_items // 3)]
        try:
            found = _decide(rule, trajectory, kept, leave_at)
        except RuntimeError as error:
            raise AssertionError(
                f"the rule fails when others leave at step {leave_at} ({error}); keep what belongs "
                "to an item in the memory's row"
            ) from error
        expect(
            close(found, decided[leave_at:, kept]),
            f"items are decided otherwise when others leave at step {leave_at}; keep what belongs "
            "to an item in the memory's row",
        )
    for value in (math.nan, math.inf):
        loss = trajectory.loss.clone()
        loss[0, 1:] = value
        expect(
            close(_decide(rule, replace(trajectory, loss=loss))[:, 1:], decided[:, 1:]),
            f"a loss of {value} changes what is decided of other items",
        )


def _check_levels(rule: LevelRule, trajectory: Trajectory) -> None:
    settings: Any = rule
    lower = replace(settings, **{rule.level_setting: getattr(rule, rule.level_setting) - 0.5})
    for one, decided in decide_all([rule, lower, rule], trajectory):
        expect(
            close(decided, decisions(one, trajectory)),
            f"{one} decides otherwise when it is tried together with other levels",
        )
