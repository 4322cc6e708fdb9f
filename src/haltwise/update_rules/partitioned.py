"""A rule for each group of coordinates, as L2L's experiment on CIFAR-10 has."""

import copy
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise.update_rules.base import Pooled, State, UpdateRule, UpdateStep

__all__ = ["PartitionedRule"]


@final
class PartitionedRule(nn.Module, UpdateRule):
    """Consecutive groups of coordinates, each moved by a rule of its own.

    L2L gives the convolutions' weights one learned optimizer and everything else another. What a
    rule pools over coordinates it pools over its group; read-outs are concatenated.

    Args:
        sizes: Coordinates of each group; their sum is D. None, for the last, is all others.
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
        from haltwise.update_rules import make  # the table of rules, which has this one in it

        super().__init__()
        require(
            len(sizes) == len(rules) > 0,
            f"every group needs a size and a rule, got {len(sizes)} sizes and {len(rules)} rules",
        )
        require(
            all(size >= 1 for size in sizes[:-1] if size is not None)
            and None not in sizes[:-1]
            and (sizes[-1] is None or sizes[-1] >= 1),
            f"sizes must be at least 1 each, the last may be None, got {list(sizes)}",
        )
        self.sizes = list(sizes)
        self.rules = [make(name, settings, generator) for name, settings in rules]
        # Makes the weights of the learned ones known to `parameters()` and `state_dict()`.
        self.learned = nn.ModuleDict(
            {str(i): rule for i, rule in enumerate(self.rules) if isinstance(rule, nn.Module)}
        )

    @property
    def readout_size(self) -> int:
        return sum(rule.readout_size for rule in self.rules)

    def settled(self) -> "PartitionedRule":
        twin = copy.copy(self)
        twin.rules = [rule.settled() for rule in self.rules]
        return twin

    def init(self, params: Tensor) -> State:
        parts = self._split(params)
        return _join([rule.init(part) for rule, part in zip(self.rules, parts, strict=True)])

    def step(self, grad: Tensor, state: State) -> UpdateStep:
        return self._each("step", grad, state)

    def replay(self, grads: Tensor, state: State) -> UpdateStep:
        return self._each("replay", grads, state)

    def advance(self, grad: Tensor, state: State, pooled: Pooled | None = None) -> UpdateStep:
        if pooled is not None:
            return super().advance(grad, state, pooled)
        return self._each("advance", grad, state)

    def backpropagate(
        self, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
    ) -> State:
        sizes = [rule.readout_size for rule in self.rules]
        parts = zip(
            self.rules,
            self._split(grads),
            self._split(cotangents.update),
            cotangents.readout.split(sizes, -1),
            strict=True,
        )
        return _join(
            [
                rule.backpropagate(
                    grad,
                    _own(state, number),
                    UpdateStep(update, readout, _own(cotangents.state, number)),
                    wants_state=wants_state,
                )
                for number, (rule, grad, update, readout) in enumerate(parts)
            ]
        )

    def _each(self, method: str, grads: Tensor, state: State) -> UpdateStep:
        """`method` of every rule on its own coordinates."""
        steps = [
            getattr(rule, method)(part, _own(state, number))
            for number, (rule, part) in enumerate(zip(self.rules, self._split(grads), strict=True))
        ]
        return UpdateStep(
            torch.cat([step.update for step in steps], -1),
            torch.cat([step.readout for step in steps], -1),
            _join([step.state for step in steps]),
        )

    def _split(self, value: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = value.split(self.sizes_of(value.shape[-1]), -1)
        return parts

    def sizes_of(self, dim: int) -> list[int]:
        """Coordinates of each group in a problem of `dim`.

        Raises:
            InputError: The groups do not make up so many.
        """
        first = [size for size in self.sizes[:-1] if size is not None]
        last = self.sizes[-1] or dim - sum(first)
        require(
            last >= 1 and sum(first) + last == dim,
            f"groups of {self.sizes} coordinates do not make up {dim} parameters",
        )
        return [*first, last]


def _join(states: Sequence[State]) -> State:
    return {
        f"{number}.{name}": value
        for number, state in enumerate(states)
        for name, value in state.items()
    }


def _own(state: State, number: int) -> State:
    prefix = f"{number}."
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


RULES = {"partitioned": PartitionedRule}
