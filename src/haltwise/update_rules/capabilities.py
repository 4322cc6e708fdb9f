"""What an update rule may offer beyond its contract, and the functions by which hosts ask for it.

A rule inherits the capabilities it has. Hosts call the functions of this module, which fall back
to `UpdateRule.update` where a capability is missing:

| capability | function | without it |
|---|---|---|
| `SupportsPreparation` | `prepare` | the rule itself |
| `SupportsInPlace` | `update_` | `update`, in new memory |
| `SupportsChunks` | `update_chunk` | refused |
| `SupportsBackpropagation` | `backpropagate` | autograd through `update` |
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.update_rules.base import PooledGradient, State, UpdateRule, UpdateStep, require_step

__all__ = [
    "SupportsBackpropagation",
    "SupportsChunks",
    "SupportsInPlace",
    "SupportsPreparation",
    "backpropagate",
    "backpropagate_by_autograd",
    "prepare",
    "supporting_chunks",
    "update_",
    "update_chunk",
]


class SupportsPreparation(ABC):
    """A rule that can share work among many steps."""

    @abstractmethod
    def prepare(self) -> UpdateRule:
        """See `haltwise.update_rules.prepare`."""


def prepare(rule: UpdateRule) -> UpdateRule:
    """The same rule for many steps, between which its weights are neither replaced nor moved.

    What these steps share is computed once. Drop the prepared rule when they are done.
    """
    return rule.prepare() if isinstance(rule, SupportsPreparation) else rule


class SupportsInPlace(ABC):
    """A rule that can write its new state into the memory of the old one."""

    @abstractmethod
    def update_(self, grad: Tensor, state: State) -> UpdateStep:
        """See `haltwise.update_rules.update_`."""


@torch.no_grad()
def update_(rule: UpdateRule, grad: Tensor, state: State) -> UpdateStep:
    """`rule.update` without a graph, which may take the memory of `state`.

    Args:
        rule: The rule.
        grad: Shape [B, D].
        state: From `init` or the step before; not to be used again.

    Raises:
        InputError: What the rule returns is no step for this gradient.
    """
    if isinstance(rule, SupportsInPlace):
        return require_step(rule, rule.update_(grad, state), grad)
    return require_step(rule, rule.update(grad, state), grad)


class SupportsChunks(ABC):
    """A rule that can move a problem's coordinates in chunks."""

    def sums(self, grad: Tensor, state: State) -> Tensor | None:
        """What the rule has to know of all coordinates before it moves any, beside the statistics.

        Hosts add up those of all chunks and give them back as `PooledGradient.sums`.

        Args:
            grad: Of N of the problem's D coordinates, shape [B, N].
            state: Of these coordinates, before the step; left untouched.

        Returns:
            Sums over these coordinates, shape [B, S]; None if there is nothing to sum.
        """
        del grad, state
        return None

    @abstractmethod
    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        """See `haltwise.update_rules.update_chunk`."""


@torch.no_grad()
def update_chunk(
    rule: UpdateRule, grad: Tensor, state: State, pooled: PooledGradient
) -> UpdateStep:
    """`update_` of some of a problem's coordinates, for problems too large to move at once.

    Args:
        rule: The rule.
        grad: Of N of the problem's D coordinates, shape [B, N].
        state: Of these coordinates; not to be used again.
        pooled: Statistics of the whole gradient, and the rule's `sums` over all of it.

    Returns:
        Updates [B, N], the read-out's mean over these coordinates, and their state.

    Raises:
        InputError: The rule does not support chunks.
    """
    return require_step(rule, supporting_chunks(rule).update_chunk(grad, state, pooled), grad)


def supporting_chunks(rule: UpdateRule) -> SupportsChunks:
    """The rule itself, if it supports chunks.

    Raises:
        InputError: It does not.
    """
    if not isinstance(rule, SupportsChunks):
        raise InputError(
            f"{type(rule).__name__} moves all coordinates of a problem at once only; to move them "
            "in chunks, as haltwise.LearnedOptimizer does, it needs a method `update_chunk` "
            "(haltwise.update_rules.SupportsChunks)"
        )
    return rule


class SupportsBackpropagation(ABC):
    """A rule that can backpropagate through many steps faster than autograd."""

    @abstractmethod
    def backpropagate(
        self, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
    ) -> State:
        """See `haltwise.update_rules.backpropagate`."""


def backpropagate(
    rule: UpdateRule, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
) -> State:
    """Backpropagate through T steps of `rule.update`, into `.grad` of the rule's weights.

    Args:
        rule: The rule.
        grads: Gradients of the steps, constants, shape [B, T, D].
        state: The state before the first step.
        cotangents: Derivatives with respect to the updates [B, T, D], the read-outs [B, T, R] and
            the state after the last step; entries missing from that are zero.
        wants_state: Whether derivatives with respect to `state` are wanted.

    Returns:
        These derivatives; an entry may be missing where it is zero. Empty unless wanted.
    """
    if isinstance(rule, SupportsBackpropagation):
        return rule.backpropagate(grads, state, cotangents, wants_state=wants_state)
    return backpropagate_by_autograd(rule, grads, state, cotangents, wants_state=wants_state)


def backpropagate_by_autograd(
    rule: UpdateRule, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
) -> State:
    """`backpropagate` by PyTorch's autograd through T calls of `rule.update`."""
    first = {
        name: value.detach().requires_grad_(wants_state and value.is_floating_point())
        for name, value in state.items()
    }
    updates, readouts, last = [], [], first
    with torch.enable_grad():
        for grad in grads.unbind(1):
            update, readout, last = rule.update(grad, last)
            updates.append(update)
            readouts.append(readout)
        pairs = [
            (torch.stack(updates, 1), cotangents.update),
            (torch.stack(readouts, 1), cotangents.readout),
            *((last[name], value) for name, value in cotangents.state.items()),
        ]
    pairs = [pair for pair in pairs if pair[0].requires_grad]
    if pairs:
        roots, values = zip(*pairs, strict=True)
        torch.autograd.backward(roots, values)
    return {name: value.grad for name, value in first.items() if value.grad is not None}
