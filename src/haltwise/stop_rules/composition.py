"""Stop rules made of stop rules."""

from dataclasses import dataclass
from itertools import product
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import nested_state, sub_state
from haltwise.stop_rules.base import StepObservation, StopRule

__all__ = ["AllOf", "AnyOf"]

_Memory = dict[str, Tensor]  # of part i under "i."


def _init(rules: tuple[StopRule, ...], num_problems: int, like: Tensor) -> _Memory:
    memory: _Memory = {}
    for index, rule in enumerate(rules):
        memory |= nested_state(rule.init(num_problems, like), f"{index}.")
    return memory


def _step(
    rules: tuple[StopRule, ...], seen: StepObservation, memory: _Memory
) -> tuple[Tensor, Tensor, _Memory]:
    """Of every rule, whether it stops (bool) and why (int64), each [number of rules, B]."""
    stops, whys = [], []
    after: _Memory = {}
    for index, rule in enumerate(rules):
        stop, own = rule.step(seen, sub_state(memory, f"{index}."))
        stops.append(stop)
        whys.append(rule.why(stop, own))
        after |= nested_state(own, f"{index}.")
    return torch.stack(stops), torch.stack(whys), after


@final
@dataclass(frozen=True)
class AnyOf(StopRule):
    """Stop where any of the rules does: `a | b`. It is due to the first of them that says so."""

    rules: tuple[StopRule, ...]

    def __post_init__(self) -> None:
        require(len(self.rules) > 0, "AnyOf needs at least one rule")

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(reason for rule in self.rules for reason in rule.reasons)

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        why = torch.zeros(num_problems, dtype=torch.int64, device=like.device)
        return {"why": why, **_init(self.rules, num_problems, like)}

    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        stops, whys, memory = _step(self.rules, seen, memory)
        first = stops.byte().argmax(0)
        before = [0]  # reasons of the rules before each
        for rule in self.rules[:-1]:
            before.append(before[-1] + len(rule.reasons))
        why = whys.gather(0, first.unsqueeze(0)).squeeze(0) + first.new_tensor(before)[first]
        return stops.any(0), {"why": why, **memory}

    def why(self, stop: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return memory["why"]


@final
@dataclass(frozen=True)
class AllOf(StopRule):
    """Stop where all of the rules do at the same step: `a & b`."""

    rules: tuple[StopRule, ...]

    def __post_init__(self) -> None:
        require(len(self.rules) > 0, "AllOf needs at least one rule")

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(" and ".join(parts) for parts in product(*(r.reasons for r in self.rules)))

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        return _init(self.rules, num_problems, like)

    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        stops, _, memory = _step(self.rules, seen, memory)
        return stops.all(0), memory

    def why(self, stop: Tensor, memory: dict[str, Tensor]) -> Tensor:
        why = torch.zeros_like(stop, dtype=torch.int64)
        for index, rule in enumerate(self.rules):  # in the order of `itertools.product`
            why = why * len(rule.reasons) + rule.why(stop, sub_state(memory, f"{index}."))
        return why
