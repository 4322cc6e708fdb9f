"""The contract of a stop rule, and rules made of rules."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby, islice, product
from typing import ClassVar, Literal, Self, final

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.settings import got
from haltwise._core.tensors import (
    constants,
    kind_of,
    nested_state,
    require_items,
    sub_state,
    widened,
)
from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory

__all__ = [
    "AllOf",
    "AnyOf",
    "DecisionTime",
    "LevelRule",
    "StopRule",
    "begin",
    "decide",
    "decide_all",
    "decisions",
    "decisions_and_reasons",
    "number_reasons",
    "quantile_grid",
]

Memory = dict[str, Tensor]
"""What a rule remembers of the items, each tensor with the items along dimension 0."""


@final
class DecisionTime(IntEnum):
    """The time of a decision; indexes the last dimension of a halting model's outputs."""

    AFTER_GRADIENT = 0
    """About theta_t, with the gradient there in hand."""
    BEFORE_GRADIENT = 1
    """About theta_{t+1}, before the gradient there is paid for."""


class StopRule(ABC):
    """A rule that says when to stop: frozen settings, pure `init` and `step`.

    A decision at step t uses nothing later than the observation of step t. What it decides about
    (taking the update g_t, or asking for the gradient at theta_{t+1}) is the host's affair: see
    `haltwise.stop_rules.policy`.

    Rules compose: `a | b` stops where either does, `a & b` where both do at the same step.
    """

    @property
    def reasons(self) -> tuple[str, ...]:
        """Possible reasons of a stop, in words."""
        return (repr(self),)

    def init(self, num_items: int, like: Tensor) -> Memory:
        """The memory before the first step; tensors [num_items, ...] in the dtype of `like`."""
        del num_items, like
        return {}

    @abstractmethod
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        """Decide which items stop at this step, bool [B]; with the memory for the next."""

    def why(self, stop: Tensor, memory: Memory) -> Tensor:
        """Which of `reasons` stops each item, int64 [B]; meaningful where it stops.

        Args:
            stop: What `step` just returned, bool [B].
            memory: What it returned beside it.
        """
        del memory
        return torch.zeros_like(stop, dtype=torch.int64)

    def __or__(self, other: "StopRule") -> "AnyOf":
        return AnyOf((self, other))

    def __and__(self, other: "StopRule") -> "AllOf":
        return AllOf((self, other))

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list[Self]:
        """Settings worth trying on trajectories that were set aside for tuning.

        Args:
            trajectory: The tuning problems.
            costs: excess + price * cost of ending at each step 0..T, shape [n, T+1].
        """
        raise InputError(
            f"{cls.__name__} has no candidates to choose from; give the class a class method "
            "`candidates(trajectory, costs)` that lists settings to try, or use one as it is"
        )


def begin(rule: StopRule, num_items: int, like: Tensor) -> Memory:
    """The memory of a stop rule before the first step, refused where it is none.

    Raises:
        InputError: `init` returns no dictionary of tensors with the items along dimension 0, or it
            is no stop rule.
    """
    require(isinstance(rule, StopRule), f"a stop rule must be a StopRule, {got(rule)}")
    memory = rule.init(num_items, like)
    require_items(memory, num_items, f"the memory that {type(rule).__name__}.init returns")
    return memory


def decide(rule: StopRule, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
    """Take a step of a stop rule, refused where it would be spread over the items.

    Raises:
        InputError: `step` returns no bool tensor [B] and memory.
    """
    found: object = rule.step(observation, memory)
    shape = observation.loss.shape
    if isinstance(found, tuple) and len(found) == 2:
        stop, after = found
        if isinstance(stop, Tensor) and stop.dtype == torch.bool and stop.shape == shape:
            whose = f"the memory that {type(rule).__name__}.step returns"
            require_items(after, stop.shape[0], whose)
            return stop, after
        found = stop
    raise InputError(
        f"{type(rule).__name__}.step must return a bool tensor of shape {list(shape)}, where "
        f"items stop, and the memory, got {kind_of(found)}; haltwise.testing.check_stop_rule says "
        "what else a stop rule must keep"
    )


def number_reasons(rule: StopRule, stop: Tensor, memory: Memory) -> Tensor:
    """Which of a stop rule's reasons stops each item, int64 [B], refused where it is no number.

    Raises:
        InputError: `why` returns no int64 tensor [B].
    """
    why: object = rule.why(stop, memory)
    if isinstance(why, Tensor) and why.dtype == torch.int64 and why.shape == stop.shape:
        return why
    raise InputError(
        f"{type(rule).__name__}.why must return an int64 tensor of shape {list(stop.shape)}, which "
        f"of `reasons` stops each item, got {kind_of(why)}"
    )


class LevelRule(StopRule):
    """A rule that stops at the first t at which some statistic reaches a level.

    Settings that differ in nothing but the level share the statistic, so many levels are tried at
    the cost of one; see `decide_all`.
    """

    level_setting: ClassVar[str]
    """The field that holds the level; the only one in which settings tried together may differ."""

    @property
    def level(self) -> float:
        """The level that the statistic must reach."""
        value: float = getattr(self, self.level_setting)
        return value

    @abstractmethod
    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        """The statistic of each item at this step, shape [B], and the memory for the next."""

    @final
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        statistic, memory = self.statistic(observation, memory)
        return statistic >= self.level, memory


# ------------------------------------------------------------------------------------ composition


@dataclass(frozen=True)
class _Composed(StopRule):
    """A rule made of rules, whose memories lie side by side in its own."""

    rules: tuple[StopRule, ...]

    def __post_init__(self) -> None:
        require(len(self.rules) > 0, f"{type(self).__name__} needs at least one rule")

    def init(self, num_items: int, like: Tensor) -> Memory:
        memory: Memory = {}
        for index, rule in enumerate(self.rules):
            memory |= nested_state(begin(rule, num_items, like), f"{index}.")
        return memory

    def _step_parts(
        self, observation: StepObservation, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        """Whether each rule stops (bool) and why (int64), each [number of rules, B]."""
        stops, whys = [], []
        after: Memory = {}
        for index, rule in enumerate(self.rules):
            stop, own = decide(rule, observation, sub_state(memory, f"{index}."))
            stops.append(stop)
            whys.append(number_reasons(rule, stop, own))
            after |= nested_state(own, f"{index}.")
        return torch.stack(stops), torch.stack(whys), after


@final
@dataclass(frozen=True)
class AnyOf(_Composed):
    """Stop where any of the rules does: `a | b`. The reason is that of the first that stops."""

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(reason for rule in self.rules for reason in rule.reasons)

    def init(self, num_items: int, like: Tensor) -> Memory:
        why = torch.zeros(num_items, dtype=torch.int64, device=like.device)
        return {"why": why, **super().init(num_items, like)}

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        stops, whys, memory = self._step_parts(observation, memory)
        first = stops.byte().argmax(0)
        before = [0]  # reasons of the rules before each
        for rule in self.rules[:-1]:
            before.append(before[-1] + len(rule.reasons))
        why = whys.gather(0, first.unsqueeze(0)).squeeze(0) + constants(before, first)[first]
        return stops.any(0), {"why": why, **memory}

    def why(self, stop: Tensor, memory: Memory) -> Tensor:
        return memory["why"]


@final
@dataclass(frozen=True)
class AllOf(_Composed):
    """Stop where all of the rules do at the same step: `a & b`."""

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(" and ".join(parts) for parts in product(*(r.reasons for r in self.rules)))

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        stops, _, memory = self._step_parts(observation, memory)
        return stops.all(0), memory

    def why(self, stop: Tensor, memory: Memory) -> Tensor:
        why = torch.zeros_like(stop, dtype=torch.int64)
        for index, rule in enumerate(self.rules):  # in the order of `itertools.product`
            why = why * len(rule.reasons) + rule.why(stop, sub_state(memory, f"{index}."))
        return why


# ------------------------------------------------------------------------- on recorded trajectories


_MOST_AT_ONCE = 2**18  # decisions


def decide_all(
    rules: Iterable[StopRule], trajectory: Trajectory
) -> Iterator[tuple[StopRule, Tensor]]:
    """Each rule with its `decisions`, int64 [n]; those that differ in a level alone at once."""
    for key, alike in groupby(rules, _all_but_the_level):
        if key is None:
            yield from ((rule, decisions(rule, trajectory)) for rule in alike)
            continue
        of_levels = (rule for rule in alike if isinstance(rule, LevelRule))  # all of them are
        num_at_once = max(1, _MOST_AT_ONCE // max(1, trajectory.num_items))
        highest: Tensor | None = None
        while block := list(islice(of_levels, num_at_once)):
            if highest is None:
                highest = _highest_so_far(block[0], trajectory).t().contiguous()
            levels = highest.new_tensor([rule.level for rule in block])
            # What has not been reached comes before it: the highest so far only grows.
            steps = torch.searchsorted(highest, levels.repeat(len(highest), 1))
            yield from zip(block, steps.t().contiguous(), strict=True)


def _all_but_the_level(rule: StopRule) -> object:
    """What two level rules have in common that differ in their levels alone; None of others."""
    if not isinstance(rule, LevelRule):
        return None
    return type(rule), *{**vars(rule), rule.level_setting: None}.values()


def _highest_so_far(rule: LevelRule, trajectory: Trajectory) -> Tensor:
    """The largest statistic at steps 0..t, shape [T, n]; -inf where there is none."""
    memory = begin(rule, trajectory.num_items, trajectory.loss)
    statistics = []
    for observation in trajectory:
        statistic, memory = rule.statistic(observation, memory)
        statistics.append(statistic)
    if not statistics:
        return trajectory.loss.new_empty(0, trajectory.num_items)
    stacked = torch.stack(statistics)
    return stacked.masked_fill(stacked.isnan(), -torch.inf).cummax(0).values


def decisions(rule: StopRule, trajectory: Trajectory) -> Tensor:
    """The step of the first stop of each item, T where it never stops; int64 [n]."""
    return decisions_and_reasons(rule, trajectory)[0]


def decisions_and_reasons(rule: StopRule, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """`decisions`, and which of `rule.reasons` each is due to, -1 where none is; int64 [n]."""
    memory = begin(rule, trajectory.num_items, trajectory.loss)
    stopped = torch.full(
        (trajectory.num_items,),
        trajectory.num_steps,
        dtype=torch.int64,
        device=trajectory.loss.device,
    )
    reason = torch.full_like(stopped, -1)
    for observation in trajectory:
        stop, memory = decide(rule, observation, memory)
        first = stop & (stopped == trajectory.num_steps)
        stopped = torch.where(first, observation.step, stopped)
        reason = torch.where(first, number_reasons(rule, stop, memory), reason)
    return stopped, reason


def quantile_grid(
    values: Tensor, num: int, *, never: Literal["above", "below"] | None = None
) -> list[float]:
    """`num` levels that spread the finite `values` evenly, for thresholds to try.

    Args:
        values: What a rule compares with its level, on the problems it is tuned on.
        num: Of levels.
        never: On which side of all values a rule does not stop; a level there is tried as well.
            Without it a statistic that is the same for all problems, as that of the first step
            often is, would leave no choice but to stop there.
    """
    flat = widened(values[values.isfinite()].flatten())
    require(len(flat) > 0, "no finite value to choose thresholds from")
    flat = flat.sort().values
    ranks = torch.linspace(0, len(flat) - 1, num, dtype=torch.float64, device="cpu")
    levels = sorted(set(flat[ranks.round().long()].tolist()))
    least, largest = levels[0], levels[-1]
    margin = max(largest - least, abs(least), abs(largest)) or 1.0  # in any unit and precision
    if never is not None:
        levels.append(largest + margin if never == "above" else least - margin)
    return levels
