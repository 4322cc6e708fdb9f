"""What a problem to be optimized ("optimizee") must offer.

Shape legend used throughout: B problems, D parameters of one problem, T steps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import map_tensors

__all__ = ["Evaluation", "Observation", "Score", "TaskBatch", "TaskFamily"]


class Observation(NamedTuple):
    """What an optimizer may see at one step.

    Attributes:
        loss: The loss at the parameters, shape [B].
        grad: Its gradient, shape [B, D].
    """

    loss: Tensor
    grad: Tensor


class Evaluation(NamedTuple):
    """An observation together with what the step is judged by.

    Attributes:
        loss: The observed loss, shape [B].
        grad: The observed gradient, shape [B, D].
        excess: The scored loss above the problem's reference, shape [B]. Equals `loss` minus the
            reference loss where the observed loss is the one that counts.
        excess_grad: The gradient of `excess`, shape [B, D].
    """

    loss: Tensor
    grad: Tensor
    excess: Tensor
    excess_grad: Tensor


class Score(NamedTuple):
    """An observation together with what stopping is judged by.

    Attributes:
        loss: The observed loss, shape [B].
        grad: The observed gradient, shape [B, D].
        excess: The judged loss above the problem's reference, shape [B].
    """

    loss: Tensor
    grad: Tensor
    excess: Tensor


@dataclass(frozen=True)
class TaskBatch(ABC):
    """B problems solved side by side.

    Every tensor field, and every tensor in a field that is a dictionary, has the problems along
    its first dimension; subclasses are frozen dataclasses, so `select` is written once. What all
    problems share, a data set for instance, goes into a field of another kind. Losses of distinct
    problems never mix.
    """

    start: Tensor
    """Initial parameters theta_0, shape [B, D]."""

    @property
    def num_problems(self) -> int:
        """B."""
        return self.start.shape[0]

    @property
    def dim(self) -> int:
        """D, the number of parameters of one problem."""
        return self.start.shape[1]

    @property
    @abstractmethod
    def reference_loss(self) -> Tensor:
        """The loss that excess is measured from, shape [B]: the minimum where it is known."""

    @property
    def minimizer(self) -> Tensor | None:
        """A point of least loss, shape [B, D], or None where none is known."""
        return None

    @property
    def stochastic(self) -> bool:
        """Whether the loss observed at given parameters depends on the step."""
        return False

    @abstractmethod
    def observe(self, params: Tensor, step: int) -> Observation:
        """Loss and gradient as the optimizer sees them.

        Args:
            params: theta_t, shape [B, D].
            step: t, the number of updates applied so far; picks the minibatch of stochastic tasks.
        """

    def observe_loss(self, params: Tensor, step: int) -> Tensor:
        """The loss of `observe`, shape [B], for a task that knows it for less than the gradient."""
        return self.observe(params, step).loss

    def evaluate(self, params: Tensor, step: int) -> Evaluation:
        """`observe`, with the excess loss that counts and its gradient.

        The default serves deterministic tasks whose loss minus reference is accurate enough;
        a task with a better-conditioned form of the difference overrides it.
        """
        loss, grad = self.observe(params, step)
        return Evaluation(loss, grad, loss - self.reference_loss, grad)

    def score(self, params: Tensor, step: int) -> Score:
        """`observe`, with the excess that stopping is judged by.

        The same as that of `evaluate`, except where the loss that is differentiated is a noisy
        estimate: an oracle that picks the best of many minibatch losses harvests their noise.
        """
        loss, grad, excess, _ = self.evaluate(params, step)
        return Score(loss, grad, excess)

    def select(self, index: Tensor) -> Self:
        """The problems at `index` (int64 [K]) as a batch of their own."""
        return map_tensors(self, lambda value: value.index_select(0, index))


@dataclass(frozen=True)
class TaskFamily(ABC):
    """A distribution over problems: what an optimizer is meta-trained on.

    Subclasses are frozen dataclasses whose fields are plain JSON values, so that a family can be
    written on a card and made again from it.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the number of parameters of one problem."""

    @abstractmethod
    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        """Draw problems in float64 on the CPU."""

    def sample(
        self,
        num_problems: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TaskBatch:
        """Draw `num_problems` independent problems.

        Problems are drawn and reduced in float64 on the CPU and converted afterwards, so the same
        generator gives the same problems in every dtype and on every device.

        Args:
            num_problems: B, at least 1.
            generator: CPU generator; advanced by the call.
            dtype: Floating type of the batch.
            device: Where the batch lies.

        Returns:
            The batch, its tensors of `dtype` on `device`.

        Raises:
            InputError: `num_problems` is below 1.
        """
        require(num_problems >= 1, f"a batch needs at least 1 problem, got {num_problems}")
        batch = self._sample(num_problems, generator)
        return map_tensors(
            batch, lambda value: value.to(device, dtype if value.is_floating_point() else None)
        )
