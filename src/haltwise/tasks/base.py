"""What a problem to be optimized ("optimizee") and a family of them must offer.

Beside B, D and T: N observations or examples of a problem, M of them in a minibatch.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import shown, whole_number
from haltwise._core.tensors import (
    floating_dtype,
    map_tensors,
    require_dtype,
    undisturbed,
    usable_device,
)

__all__ = [
    "CurvedObservation",
    "DifferentiatedScore",
    "Observation",
    "Score",
    "SupportsCurvature",
    "SupportsResiduals",
    "TaskBatch",
    "TaskFamily",
    "ask",
]


class Observation(NamedTuple):
    """Loss [B] and gradient [B, D] as an optimizer observes them at one step."""

    loss: Tensor
    grad: Tensor


class CurvedObservation(NamedTuple):
    """Loss [B], gradient [B, D] and a matrix of curvature [B, D, D]."""

    loss: Tensor
    grad: Tensor
    curvature: Tensor


class DifferentiatedScore(NamedTuple):
    """An observation, and the excess loss [B] that meta-training minimises, with its gradient.

    The excess is the scored loss above the problem's reference: `loss` minus the reference loss
    where the observed loss is the one that counts.
    """

    loss: Tensor
    grad: Tensor
    excess: Tensor
    excess_grad: Tensor


class Score(NamedTuple):
    """An observation, and the loss above the problem's reference that judges stops, [B]."""

    loss: Tensor
    grad: Tensor
    excess: Tensor


Seen = TypeVar("Seen", Observation, DifferentiatedScore, Score)


class SupportsCurvature(ABC):
    """A deterministic batch that knows second derivatives; see `haltwise.engines.newton`."""

    @property
    def curvature_refusal(self) -> str | None:
        """Why this batch has none after all, in a clause; None where it has."""
        return None

    @property
    def gives_curvature(self) -> bool:
        """Whether curvature costs about as much as a gradient; false if D times as much."""
        return True

    @abstractmethod
    def observe_curvature(self, params: Tensor) -> CurvedObservation:
        """Compute loss and gradient as `observe` does, and the Hessian or what stands for it."""


class SupportsResiduals(ABC):
    """A deterministic batch whose losses are sums of squares, 1/2 sum_m r_m^2.

    See `haltwise.engines.gauss_newton`.
    """

    @property
    def residuals_refusal(self) -> str | None:
        """Why this batch has none after all, in a clause; None where it has."""
        return None

    @abstractmethod
    def observe_residuals(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Compute residuals r [B, M] and their Jacobian dr / dtheta [B, M, D]."""

    def bend(self, params: Tensor) -> Tensor | None:
        """Compute x'' / x' of parameters x that coordinates [B, D] stand for, in the same shape.

        None where the coordinates are the parameters.
        """
        return None


def ask(method: Callable[[Tensor, int], Seen], params: Tensor, step: int) -> Seen:
    """Call a method of a batch with gradients enabled, for a loss may differentiate inside."""
    with torch.enable_grad():
        seen = method(params, step)
    return type(seen)(*(value.detach() if value.requires_grad else value for value in seen))


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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):  # a dataclass would print all its tensors
            cls.__repr__ = TaskBatch.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        kind = type(self).__name__
        start: object = self.start
        if not isinstance(start, Tensor):  # a mistake, which is refused where it is solved
            return f"{kind}(start is a {type(start).__name__})"
        return (
            f"{kind}({self.num_problems:,} problems of {self.dim:,} parameters, {start.dtype} on "
            f"{start.device})"
        )

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
    def has_reference(self) -> bool:
        """Whether excess is measured from a least loss that is known, or from some other bound."""
        return self.minimizer is not None or bool((self.reference_loss != 0).any())

    @property
    def reach(self) -> Tensor | None:
        """How far one step of an engine may take each coordinate, shape [D]; None for any way."""
        return None

    @property
    def stochastic(self) -> bool:
        """Whether the loss observed at given parameters depends on the step."""
        return False

    @abstractmethod
    def observe(self, params: Tensor, step: int) -> Observation:
        """Compute loss and gradient as the optimizer observes them.

        Args:
            params: theta_t, shape [B, D].
            step: t; picks the minibatch of stochastic tasks.
        """

    def draw_ahead(self, num_steps: int) -> Self:
        """The same batch, what is random in its steps 0..`num_steps` - 1 drawn at once."""
        return self

    def observe_loss(self, params: Tensor, step: int) -> Tensor:
        """Compute the loss of `observe` alone, shape [B]."""
        return self.observe(params, step).loss

    def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
        """Compute `observe`, and the excess loss that meta-training minimises with its gradient.

        The default serves deterministic tasks whose loss minus reference is accurate enough;
        a task with a better-conditioned form of the difference overrides it.
        """
        loss, grad = self.observe(params, step)
        return DifferentiatedScore(loss, grad, loss - self.reference_loss, grad)

    def score(self, params: Tensor, step: int) -> Score:
        """Compute `observe`, and the excess loss that stopping is judged by.

        It is a function of the parameters alone. The same as that of `evaluate`, except where the
        loss that is differentiated is a noisy estimate: an oracle that picks the best of many
        minibatch losses harvests their noise.
        """
        loss, grad, excess, _ = self.evaluate(params, step)
        return Score(loss, grad, excess)

    def to(
        self,
        device: torch.device | torch.dtype | str | int | None = None,
        dtype: Any = None,
    ) -> Self:
        """Copy the batch to a device, or its floating-point numbers to a dtype, or both.

        Whole numbers and flags keep their dtype, and what is in order already is not copied.

        Args:
            device: Such as "cuda", "cuda:1" or "cpu"; where everything is if None. As in
                `torch.Tensor.to`, a dtype may take its place.
            dtype: `torch.float32` or `torch.float64`, or NumPy's; as it is if None.

        Raises:
            InputError: The device cannot be used or lacks the dtype, or it is another dtype.

        Examples:
            >>> import haltwise
            >>> batch = haltwise.FunctionBatch(torch.ones(3, 2), lambda params: params.sum(1))
            >>> batch.to("cpu", torch.float64)
            FunctionBatch(3 problems of 2 parameters, torch.float64 on cpu)
        """
        if isinstance(device, torch.dtype):
            require(dtype is None, f"give one dtype, not both {device} and {shown(dtype)}")
            device, dtype = None, device
        place = None if device is None else usable_device(device)
        kind = None if dtype is None else floating_dtype(dtype)
        require_dtype(place or self.start.device, kind or self.start.dtype)

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):  # a mistake, which is refused where it is solved
                return value
            return value.to(place, kind if value.is_floating_point() else None)

        return map_tensors(self, moved)

    def select(self, index: Tensor) -> Self:
        """Take the problems at `index`, int64 [any number of them], as a batch of their own."""
        return map_tensors(self, lambda value: value.index_select(0, index))

    def part(self, begin: int, end: int) -> Self:
        """Take problems `begin` up to `end`, as views if the class has no `select` of its own."""
        if type(self).select is not TaskBatch.select:
            return self.select(torch.arange(begin, end, device=self.start.device))
        return map_tensors(self, lambda value: value[begin:end])


@dataclass(frozen=True)
class TaskFamily(ABC):
    """A distribution over problems, on which an optimizer is meta-trained.

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

    @property
    def data_dir(self) -> Path | None:
        """Directory of data files, for families that read any; None for the default."""
        directory: Path | None = vars(self).get("_data_dir")
        return directory

    def with_data_dir(self, directory: Path | str) -> Self:
        """Copy the family, to read its data from `directory`.

        That is no field: the copy equals the original, and no card holds it. `dataclasses.replace`
        therefore drops it, so change fields first.
        """
        bound = copy.copy(self)
        object.__setattr__(bound, "_data_dir", Path(directory))  # the class is frozen
        return bound

    @final
    @undisturbed(grad=True, on_cpu=True)
    def sample(
        self,
        num_problems: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TaskBatch:
        """Draw `num_problems` independent problems, at least 1, which advances the CPU generator.

        Problems are drawn and reduced in float64 on the CPU and converted afterwards, so the same
        generator gives the same problems in every dtype and on every device.

        Raises:
            InputError: `num_problems` is below 1, data files are missing or bad, or the device
                has no such numbers.
        """
        require_dtype(device, dtype)
        batch = self._sample(whole_number("num_problems", num_problems), generator)
        return map_tensors(
            batch, lambda value: value.to(device, dtype if value.is_floating_point() else None)
        )
