"""The contract of update rules: how parameters move, as two pure functions."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

from torch import Tensor

from haltwise._core.errors import InputError
from haltwise._core.tensors import kind_of, log_rms

__all__ = ["PooledGradient", "State", "UpdateRule", "UpdateStep", "require_step"]

State = dict[str, Tensor]
"""What a rule carries from step to step; every tensor has the problems along dimension 0."""


class UpdateStep(NamedTuple):
    """One step of a rule.

    Attributes:
        update: g_t, to be added to the parameters (thesis Eq. 1), shape [B, D];
            docs/theory.md, Eq. (update).
        readout: Features of the rule's state for a halter, shape [B, R]; R may be 0.
        state: The state for the next step.
    """

    update: Tensor
    readout: Tensor
    state: State

    @classmethod
    def without_readout(cls, update: Tensor, state: State) -> Self:
        """A step of a rule that offers a halter no features."""
        return cls(update, update.new_empty(*update.shape[:1], 0), state)


class UpdateRule(ABC):
    """An update rule. Settings live in the object, state only in the `State` passed around.

    `init` and `update` are all that a rule needs. What hosts can use beyond that (chunks of
    coordinates, steps in place, faster backpropagation) is optional, see
    `haltwise.update_rules.capabilities`. `haltwise.testing.check_update_rule` checks the contract.

    Examples:
        >>> import torch
        >>> class SignDescent(UpdateRule):
        ...     def init(self, params):
        ...         return {}
        ...
        ...     def update(self, grad, state):
        ...         return UpdateStep.without_readout(-0.01 * grad.sign(), state)
        >>> rule, grad = SignDescent(), torch.tensor([[3.0, -0.5]])
        >>> rule.update(grad, rule.init(grad)).update
        tensor([[-0.0100,  0.0100]])
    """

    @property
    def readout_size(self) -> int:
        """R, the number of features that a halter may read."""
        return 0

    @abstractmethod
    def init(self, params: Tensor) -> State:
        """The state before the first step.

        Args:
            params: Initial parameters, shape [B, D]; the state takes their dtype and device.
        """

    @abstractmethod
    def update(self, grad: Tensor, state: State) -> UpdateStep:
        """The update for the gradient at theta_t.

        A learned rule builds a graph to its weights where gradients are enabled.

        Args:
            grad: Shape [B, D].
            state: From `init` or the step before; left untouched.
        """


def require_step(rule: UpdateRule, step: object, grad: Tensor) -> UpdateStep:
    """What a rule returned for the gradient [B, D], refused where it would be spread over it.

    Raises:
        InputError: It is no `UpdateStep`, or the update is of another shape or dtype.
    """
    found = step
    if isinstance(step, UpdateStep):
        found = step.update
        if isinstance(found, Tensor) and found.shape == grad.shape and found.dtype == grad.dtype:
            return step
    raise InputError(
        f"{type(rule).__name__}.update must return an UpdateStep(update, readout, state), the "
        f"update {grad.dtype} in shape {list(grad.shape)} as the gradient is, got "
        f"{kind_of(found)}; haltwise.testing.check_update_rule says what else an update rule must "
        "keep"
    )


class PooledGradient(NamedTuple):
    """Statistics of a gradient over all of a problem's coordinates.

    Attributes:
        mean: Shape [...].
        log_rms: Natural logarithm of the root mean square, shape [...].
        sums: What the rule itself sums over coordinates, shape [..., S]; None if it sums nothing,
            see `SupportsChunks.sums`.
    """

    mean: Tensor
    log_rms: Tensor
    sums: Tensor | None = None

    @classmethod
    def of(cls, grad: Tensor) -> Self:
        """The statistics of whole gradients [..., D]."""
        return cls(grad.mean(-1), log_rms(grad))
