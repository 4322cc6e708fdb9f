"""Trajectories and settings on which every stop rule is tried."""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from draws import DOUBLE, randn, seeded
from torch import Tensor

from haltwise.processes import StepObservation, Trajectory
from haltwise.stop_rules import (
    AllOf,
    AnyOf,
    DecisionTime,
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Patience,
    Plateau,
    PonderThreshold,
    PosteriorMode,
    StopRule,
    costs,
    stop_rules,
)

__all__ = [
    "AFTER",
    "BEFORE",
    "COMPOSED",
    "COSTS",
    "KINDS",
    "TRAJECTORY",
    "Drawn",
    "N",
    "T",
    "any_rule",
    "every_rule",
    "falling_trajectory",
    "observe",
    "offers_candidates",
    "reasons_at_every_step",
    "settings",
]

AFTER, BEFORE = DecisionTime.AFTER_GRADIENT, DecisionTime.BEFORE_GRADIENT
N, T = 40, 12


def falling_trajectory(seed: int = 0, num: int = N) -> Trajectory:
    """Noisy, falling curves; every signal crosses every sensible threshold at some time."""
    fall = torch.linspace(2, -2, T + 1, dtype=DOUBLE)
    loss = (fall + 0.7 * randn(num, T + 1, seed=seed + 1)).exp()
    return Trajectory(
        loss=loss,
        excess=loss + 0.1 * randn(num, T + 1, seed=seed + 2),
        log_grad_norm=fall + randn(num, T + 1, seed=seed + 3),
        outputs={
            "increments": fall[:-1, None] + randn(num, T, 2, seed=seed + 4),
            "hazard_logits": -fall[:-1, None] + randn(num, T, 2, seed=seed + 5),
            "halting_logits": -fall[:-1, None] - 2 + randn(num, T, 2, seed=seed + 7),
            "hold_logits": randn(num, T, seed=seed + 6),
        },
    )


@dataclass(frozen=True)
class Drawn(StopRule):
    """Stop each item at a step drawn at the start, by its position in the whole batch."""

    seed: int

    def init(self, num_items: int, like: Tensor) -> dict[str, Tensor]:
        drawn = torch.randint(T + 4, (num_items,), generator=seeded(self.seed))
        return {"drawn": drawn.to(like.device)}

    def step(
        self, observation: StepObservation, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return memory["drawn"] <= observation.step, memory


TRAJECTORY = falling_trajectory()
COSTS = costs(TRAJECTORY.excess, 0.2)
COMPOSED: dict[type[StopRule], list[StopRule]] = {
    AnyOf: [
        Patience(3) | GradientNorm(-1.5) | FixedBudget(9),
        HazardThreshold(3.0) | (Drawn(7) & Plateau(0.2)),
    ],
    AllOf: [
        Patience(1) & GradientNorm(0.5),
        (Drawn(7) | PosteriorMode(BEFORE)) & (Plateau(0.1) | PonderThreshold(0.4)),
    ],
}
KINDS: list[type[StopRule]] = [*stop_rules().values(), *COMPOSED]
every_rule = pytest.mark.parametrize("rule", KINDS, ids=lambda rule: rule.__name__)


def offers_candidates(rule: type[StopRule]) -> bool:
    """Whether the rule lists settings to try."""
    return rule.candidates.__func__ is not StopRule.candidates.__func__  # type: ignore[attr-defined]


def settings(rule: type[StopRule]) -> list[StopRule]:
    """A spread of what the rule would try itself; a rule without settings, as it is."""
    if rule in COMPOSED:
        return COMPOSED[rule]
    if not offers_candidates(rule):
        return [rule()]
    found = rule.candidates(TRAJECTORY, COSTS)
    return found[:: max(1, len(found) // 12)]


def _composed(leaves: st.SearchStrategy[StopRule]) -> st.SearchStrategy[StopRule]:
    pairs = st.tuples(leaves, leaves)
    return pairs.map(lambda pair: pair[0] | pair[1]) | pairs.map(lambda pair: pair[0] & pair[1])


any_rule = st.recursive(
    st.sampled_from([setting for rule in KINDS for setting in settings(rule)]),
    _composed,
    max_leaves=3,
)


def observe(trajectory: Trajectory, step: int, items: slice) -> StepObservation:
    """What is known of some items at a step, put together by hand."""
    known = trajectory.log_grad_norm
    return StepObservation(
        step,
        trajectory.loss[items, step],
        None if known is None else known[items, step],
        outputs={name: value[items, step] for name, value in trajectory.outputs.items()},
    )


def reasons_at_every_step(rule: StopRule, trajectory: Trajectory) -> list[list[int]]:
    """At every step, of every item, the number of the reason to stop or -1."""
    memory, found = rule.init(trajectory.num_items, trajectory.loss), []
    for observation in trajectory:
        stop, memory = rule.step(observation, memory)
        found.append(torch.where(stop, rule.why(stop, memory), -1).tolist())
    return found
