"""The contract of a halting method: law, objective, stop rule and what is calibrated."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.halting.posteriors import Posterior
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    DecisionTime,
    ReturnedIterate,
    StopPolicy,
    StopRule,
)

__all__ = ["HaltingExamples", "HaltingMethod"]


class HaltingExamples(NamedTuple):
    """Arguments of a halting objective: plain tensors of B items and T steps.

    Attributes:
        excess: Scored loss at steps 0..T, shape [B, T+1].
        outputs: What the halter put out at steps 0..T-1, by name, shapes [B, T, ...]; finite.
        initial: What it put out before step 0, when only the price was known, shapes [B, ...].
        price: c, shape [B].
        progress: Share of the halter's own training that is done, in [0, 1]; None while the
            update rule is trained beside it.
        generator: Draws what is random.
    """

    excess: Tensor
    outputs: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]
    price: Tensor
    progress: float | None
    generator: torch.Generator


@dataclass(frozen=True)
class HaltingMethod(ABC):
    """One way to learn when to stop; the only place that knows its name.

    A frozen dataclass of plain settings, whose field docstrings are the command line's help. The
    halter puts out `num_outputs` raw numbers a step; the method turns them into named outputs.
    """

    @property
    @abstractmethod
    def output_sizes(self) -> Mapping[str, int]:
        """Numbers a step by name, in the order of the halter's raw outputs; 1 drops the dimension.

        A constant of the class where no setting changes it.
        """

    @property
    def has_initial(self) -> bool:
        """Whether the objective reads what is put out before step 0."""
        return False

    @property
    def needs_calibration(self) -> bool:
        """Whether the stop rule has a setting that is chosen on calibration problems."""
        return False

    @property
    def num_outputs(self) -> int:
        """Raw numbers that the halter puts out at a step."""
        return sum(self.output_sizes.values())

    def split(self, raw: Tensor) -> dict[str, Tensor]:
        """Raw outputs [..., num_outputs] by name, shapes [..., size], or [...] of size 1."""
        parts, begin = {}, 0
        for name, size in self.output_sizes.items():
            parts[name] = raw[..., begin] if size == 1 else raw[..., begin : begin + size]
            begin += size
        return parts

    @abstractmethod
    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        """Turn raw outputs, zero in a new halter, into named ones that stop rules read.

        Args:
            raw: Shape [B, ..., num_outputs].
            price: c, shape [B].
        """

    @abstractmethod
    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        """The law of the halting step, from outputs of shapes [B, T, ...]."""

    @abstractmethod
    def objective(self, examples: HaltingExamples) -> Tensor:
        """The objective to be minimised, in what `objective_unit` says, shape [B]."""

    def objective_unit(self, price: Tensor) -> Tensor:
        """What objectives count in, in units of the loss: the price c [B], unless it is another."""
        return price

    def exit_objective(self, examples: HaltingExamples) -> Tensor:
        """The same where all decisions are made with the outcome of the step in hand.

        That is how items end inside a network (`haltwise.nn`): there is no gradient to wait for.
        What the halter puts out for decisions before a gradient is not read, nor is `initial`.

        Raises:
            InputError: The method has none.
        """
        raise InputError(
            f"{type(self).__name__} has no objective for exits inside a network; give it an "
            "exit_objective, or choose another method"
        )

    @abstractmethod
    def rule(self, time: DecisionTime) -> StopRule:
        """The stop rule before anything is calibrated."""

    def returns(self, unit: CostUnit) -> ReturnedIterate:
        """The iterate that a stop returns at the cost of this unit; the unit's default."""
        return RETURNABLE[unit][0]

    def policy(self, unit: CostUnit) -> StopPolicy:
        """The policy before anything is calibrated."""
        return StopPolicy(self.rule(unit.decision_time), self.returns(unit))

    def candidates(
        self, trajectory: Trajectory, costs: Tensor, time: DecisionTime
    ) -> Sequence[StopRule]:
        """Rules among which calibration chooses; none where nothing is left open.

        Args:
            trajectory: Of n calibration problems, with the outputs of this method.
            costs: excess + price * cost of ending at each step 0..T, shape [n, T+1].
            time: When decisions are made.
        """
        del trajectory, costs, time
        return ()

    def hazards(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Tensor | None:
        """Probabilities of stopping at each step given that it is reached, [B, T]; None if unknown.

        Only a method whose rule reads hazards has them judged for reliability.
        """
        del outputs, time
        return None

    def forecast_gain(
        self, outputs: Mapping[str, Tensor], rule: StopRule, price: Tensor
    ) -> Tensor | None:
        """Forecast gain of another step, in units of the loss, shape [B]; None if unknown.

        Stopping is right where it is below the price.
        """
        del outputs, rule, price
        return None
