"""The contract of a process, and of a distribution over processes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.tensors import kind_of, require_items
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import loss_signals
from haltwise.processes.trajectory import Trajectory

__all__ = [
    "Process",
    "ProcessFamily",
    "ProcessStep",
    "State",
    "StepObservation",
    "advanced",
    "begun",
    "result_of",
    "selected",
]

State = dict[str, Tensor]
"""What a process carries from step to step; every tensor has the items along dimension 0."""


class ProcessStep(NamedTuple):
    """What is seen at step t, and the state at step t + 1."""

    observation: StepObservation
    state: State


def advanced(process: "Process", step: int, state: State) -> ProcessStep:
    """Take a step, and refuse what is none.

    Raises:
        InputError: The process returns no `ProcessStep` with a floating-point loss for each item
            and a state of the items.
    """
    found: object = process.step(step, state)
    if isinstance(found, ProcessStep) and isinstance(found.observation, StepObservation):
        loss: object = found.observation.loss
        if (
            isinstance(loss, Tensor)
            and loss.shape == (process.num_items,)
            and loss.is_floating_point()
        ):
            require_items(
                found.state, len(loss), f"the state that {type(process).__name__}.step returns"
            )
            return found
        found = loss
    raise InputError(
        f"{type(process).__name__}.step must return a ProcessStep(observation, state), the "
        f"observation with a floating-point loss for each of {process.num_items} items, got "
        f"{kind_of(found)}; haltwise.testing.check_process says what else a process must keep"
    )


def begun(process: "Process") -> State:
    """The state at step 0, refused where it is none.

    Raises:
        InputError: `init` returns no dictionary of tensors with the items along dimension 0.
    """
    state = process.init()
    require_items(state, process.num_items, f"the state that {type(process).__name__}.init returns")
    return state


def result_of(process: "Process", state: State) -> Tensor:
    """The result of each item in this state, refused where it is none.

    Raises:
        InputError: `result` returns no tensor with the items along dimension 0.
    """
    result = process.result(state)
    require_items({"what `result` returns": result}, process.num_items, type(process).__name__)
    return result


def selected(process: "Process", index: Tensor) -> "Process":
    """The items at `index` (int64 [M]) as a process, refused where it is one of others.

    Raises:
        InputError: `select` returns no process of M items.
    """
    found: object = process.select(index)
    num = found.num_items if isinstance(found, Process) else None
    require(
        num == len(index),
        f"{type(process).__name__}.select must return a process of the {len(index)} items at its "
        "index, got " + (type(found).__name__ if num is None else f"one of {num} items"),
    )
    assert isinstance(found, Process)
    return found


class Process(ABC):
    """B items that advance side by side, one step at a time, and may be stopped apart.

    An update rule on a batch of tasks is one (`OptimizationProcess`); so is a recurrent cell on
    tokens, a residual stage on images, a sampler, a solver. Items never influence each other.

    Examples:
        Newton's iteration for square roots, each step's loss the error of the square:

        >>> class Roots(Process):
        ...     def __init__(self, numbers):
        ...         self.numbers = numbers  # [B]
        ...     @property
        ...     def num_items(self):
        ...         return len(self.numbers)
        ...     def init(self):
        ...         return {"root": torch.ones_like(self.numbers)}
        ...     def step(self, step, state):
        ...         root = state["root"]
        ...         loss = (root * root - self.numbers).abs()
        ...         new = (root + self.numbers / root) / 2
        ...         return ProcessStep(self.observe(step, loss), {"root": new})
        ...     def result(self, state):
        ...         return state["root"].unsqueeze(1)
        ...     def select(self, index):
        ...         return Roots(self.numbers[index])
        >>> Roots(torch.tensor([4.0, 9.0])).num_items
        2
    """

    @property
    @abstractmethod
    def num_items(self) -> int:
        """B."""

    @abstractmethod
    def init(self) -> State:
        """The state at step 0."""

    @abstractmethod
    def step(self, step: int, state: State) -> ProcessStep:
        """Observe step t and advance to step t + 1.

        The memory of the state may be taken for the new one, as long as `result` of it stays what
        it is.
        """

    @abstractmethod
    def result(self, state: State) -> Tensor:
        """The result of each item if it stops in this state, shape [B, ...]."""

    @abstractmethod
    def select(self, index: Tensor) -> Self:
        """The items at `index` (int64 [M]) as a process of their own."""

    def score(self, state: State, step: int, observation: StepObservation) -> Tensor:
        """The loss that a stop at step t is judged by, shape [B]; the observed one by default.

        `step` has taken the state already: only what `result` needs is sure to be there.
        """
        del state, step
        return observation.loss

    def observe(self, step: int, loss: Tensor) -> StepObservation:
        """An observation of the loss alone, with its signals, for processes without gradients.

        Raises:
            InputError: The losses are not one for each item.
        """
        require(
            isinstance(loss, Tensor) and loss.ndim == 1,
            "the losses of a step must be a tensor of shape [B], one for each item, got "
            + (f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__),
        )
        return StepObservation(step, loss, signals=loss_signals(step, loss))


@dataclass(frozen=True)
class ProcessFamily(ABC):
    """A distribution over processes, from which a halting model learns.

    Subclasses are frozen dataclasses whose fields are plain JSON values.
    """

    @abstractmethod
    def sample(
        self,
        num_items: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Process:
        """Draw a process of `num_items` independent items."""

    def best_stops(self, trajectory: Trajectory, price: float) -> Tensor | None:
        """The steps at which the best causal rule stops the items, int64 [n].

        None where the law of the items is not known, as by default. Evaluations show these stops
        beside the learned ones as "best causal": what can be reached without seeing the future.

        Args:
            trajectory: n recorded items of this family.
            price: c, in units of the loss.
        """
        del trajectory, price
        return None
