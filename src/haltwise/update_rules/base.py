"""How parameters move: pure `init` and `step`, for learned and hand-designed rules alike."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise._kernels import Pooled

__all__ = ["Pooled", "State", "UpdateRule", "UpdateStep", "select_state"]

State = dict[str, Tensor]
"""What a rule carries from step to step; every tensor has the problems along dimension 0."""


class UpdateStep(NamedTuple):
    """One step of a rule.

    Attributes:
        update: g_t, to be added to the parameters (thesis Eq. 1), shape [B, D];
            docs/theory.md, Eq. (update).
        readout: What a halting head may read of the rule's state, shape [B, R]; R may be 0.
        state: The state for the next step.
    """

    update: Tensor
    readout: Tensor
    state: State


class UpdateRule(ABC):
    """An update rule. Settings live in the object, state only in the `State` passed around."""

    @property
    @abstractmethod
    def readout_size(self) -> int:
        """R, the number of features a halting head may read."""

    def settled(self) -> "UpdateRule":
        """The same rule for many steps during which its weights are neither changed nor moved.

        Whatever such steps share may be prepared here once; to be dropped when they are over.
        """
        return self

    @abstractmethod
    def init(self, params: Tensor) -> State:
        """The state before the first step, for parameters of shape [B, D]."""

    @abstractmethod
    def step(self, grad: Tensor, state: State) -> UpdateStep:
        """The update for the gradient at theta_t, shape [B, D]. `state` is left untouched."""

    def step_some(self, grad: Tensor, state: State, pooled: Pooled) -> UpdateStep:
        """`step` on some of the coordinates only, for problems too large to move at once.

        Args:
            grad: Of K of the problem's D coordinates, shape [B, K].
            state: Of these coordinates.
            pooled: Of the whole gradient.

        Returns:
            Their updates [B, K], the read-out's mean over them and their state.

        Raises:
            InputError: The rule has no such method.
        """
        del grad, state, pooled
        raise InputError(
            f"{type(self).__name__} moves a problem as a whole only; give it a method `step_some`"
        )

    def advance(self, grad: Tensor, state: State, pooled: Pooled | None = None) -> UpdateStep:
        """`step`, or `step_some` if `pooled` is given, that may take the memory of `state`.

        Without a graph; the state is not to be used again.
        """
        with torch.no_grad():
            if pooled is None:
                return self.step(grad, state)
            return self.step_some(grad, state, pooled)

    def replay(self, grads: Tensor, state: State) -> UpdateStep:
        """`step` over K recorded gradients, differentiable in the rule's weights and the state.

        Meta-training goes through here, so a rule that can do better than a loop overrides it.

        Args:
            grads: Gradients of K consecutive steps, constants, shape [B, K, D].
            state: The state before the first of them.

        Returns:
            Updates [B, K, D], read-outs [B, K, R] and the state after the last step.
        """
        updates, readouts = [], []
        for grad in grads.unbind(1):
            update, readout, state = self.step(grad, state)
            updates.append(update)
            readouts.append(readout)
        return UpdateStep(torch.stack(updates, 1), torch.stack(readouts, 1), state)

    def backpropagate(
        self, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
    ) -> State:
        """Backward of `replay`, into `.grad` of the rule's weights.

        Args:
            grads: As `replay` takes them.
            state: Likewise.
            cotangents: Derivatives with respect to what `replay` returns; entries of the state
                that are missing are zero.
            wants_state: Whether the derivatives with respect to `state` are wanted.

        Returns:
            These derivatives, where they are not zero; nothing if they are not wanted.
        """
        first = {
            name: value.detach().requires_grad_(wants_state and value.is_floating_point())
            for name, value in state.items()
        }
        with torch.enable_grad():
            replayed = self.replay(grads, first)
        pairs = [
            (replayed.update, cotangents.update),
            (replayed.readout, cotangents.readout),
            *((replayed.state[name], value) for name, value in cotangents.state.items()),
        ]
        pairs = [pair for pair in pairs if pair[0].requires_grad]
        if pairs:
            roots, values = zip(*pairs, strict=True)
            torch.autograd.backward(roots, values)
        return {name: value.grad for name, value in first.items() if value.grad is not None}


def select_state(state: State, index: Tensor) -> State:
    """The state of the problems at `index` (int64 [K])."""
    return {name: value.index_select(0, index) for name, value in state.items()}
