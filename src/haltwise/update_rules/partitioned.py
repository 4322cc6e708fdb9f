"""A rule for each group of coordinates, as in L2L's experiment on CIFAR-10."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.tensors import nested_state, sub_state
from haltwise.update_rules.base import State, UpdateRule, UpdateStep
from haltwise.update_rules.capabilities import (
    SupportsBackpropagation,
    SupportsInPlace,
    SupportsPreparation,
    backpropagate,
    prepare,
    update_,
)
from haltwise.update_rules.table import make

__all__ = ["PartitionedRule"]


@final
class PartitionedRule(
    nn.Module, UpdateRule, SupportsPreparation, SupportsInPlace, SupportsBackpropagation
):
    """Consecutive groups of coordinates, each moved by a rule of its own.

    L2L gives the convolutions' weights one learned optimizer and all other parameters another.
    What a rule pools over coordinates it pools over its group; read-outs are concatenated. A host
    that moves chunks of coordinates asks each group's own rule.

    Args:
        sizes: Number of coordinates of each group, D in total. The last may be None: all others.
        rules: Name and settings of each group's rule, as `haltwise.update_rules.make` takes them.
        generator: Draws the weights of learned rules, group by group.
    """

    def __init__(
        self,
        sizes: Sequence[int | None],
        rules: Sequence[tuple[str, dict[str, Any]]],
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(
            len(sizes) == len(rules) > 0,
            f"every group needs a size and a rule, got {len(sizes)} sizes and {len(rules)} rules",
        )
        *first, last = sizes
        require(
            all(size is not None and size >= 1 for size in first) and (last is None or last >= 1),
            f"sizes must be at least 1 each, the last may be None, got {list(sizes)}",
        )
        self.sizes = list(sizes)
        self.rules = [make(name, settings, generator) for name, settings in rules]
        # Registers the weights of learned rules with `parameters()` and `state_dict()`.
        self.learned = nn.ModuleDict(
            {str(i): rule for i, rule in enumerate(self.rules) if isinstance(rule, nn.Module)}
        )

    @property
    def readout_size(self) -> int:
        return sum(rule.readout_size for rule in self.rules)

    def prepare(self) -> "PartitionedRule":
        twin = copy.copy(self)
        twin.rules = [prepare(rule) for rule in self.rules]
        return twin

    def init(self, params: Tensor) -> State:
        parts = self._split(params)
        return _nested(rule.init(part) for rule, part in zip(self.rules, parts, strict=True))

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return self._each(lambda rule, grad, state: rule.update(grad, state), grad, state)

    def update_(self, grad: Tensor, state: State) -> UpdateStep:
        return self._each(update_, grad, state)

    def _each(
        self, step: Callable[[UpdateRule, Tensor, State], UpdateStep], grad: Tensor, state: State
    ) -> UpdateStep:
        """A step of every rule on its coordinates and its state."""
        parts = zip(self.rules, self._split(grad), self._states(state), strict=True)
        updates, readouts, states = zip(*(step(*part) for part in parts), strict=True)
        return UpdateStep(torch.cat(updates, -1), torch.cat(readouts, -1), _nested(states))

    def backpropagate(
        self, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
    ) -> State:
        of_steps = zip(
            self._split(cotangents.update),
            cotangents.readout.split([rule.readout_size for rule in self.rules], -1),
            self._states(cotangents.state),
            strict=True,
        )
        parts = zip(self.rules, self._split(grads), self._states(state), of_steps, strict=True)
        return _nested(
            backpropagate(rule, grad, own, UpdateStep(*of_step), wants_state=wants_state)
            for rule, grad, own, of_step in parts
        )

    def _split(self, value: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = value.split(self.sizes_of(value.shape[-1]), -1)
        return parts

    def _states(self, state: State) -> list[State]:
        return [sub_state(state, f"{number}.") for number in range(len(self.rules))]

    def sizes_of(self, dim: int) -> list[int]:
        """Number of coordinates of each group in a problem of `dim` coordinates.

        Raises:
            InputError: The groups do not make up `dim` coordinates.
        """
        first = [size for size in self.sizes[:-1] if size is not None]
        last = self.sizes[-1] or dim - sum(first)
        require(
            last >= 1 and sum(first) + last == dim,
            f"groups of {self.sizes} coordinates do not make up {dim} parameters",
        )
        return [*first, last]


def _nested(states: Iterable[State]) -> State:
    """The states of all groups in one, each under its group's number."""
    return {
        name: value
        for number, state in enumerate(states)
        for name, value in nested_state(state, f"{number}.").items()
    }


RULES = {"partitioned": PartitionedRule}
