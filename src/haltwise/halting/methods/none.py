"""No halting: the loss alone is minimised, and every problem runs to the horizon."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NoReturn, final

from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.halting.methods.base import HaltingExamples, HaltingMethod
from haltwise.stop_rules import DecisionTime, StopRule

__all__ = ["NoHalting"]


@final
@dataclass(frozen=True)
class NoHalting(HaltingMethod):
    """Learn nothing about halting: the LSTM optimizer of L2L (Andrychowicz et al. 2016)."""

    output_sizes: ClassVar[Mapping[str, int]] = MappingProxyType({})

    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return {}

    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> NoReturn:
        _refuse()

    def objective(self, examples: HaltingExamples) -> NoReturn:
        _refuse()

    def exit_objective(self, examples: HaltingExamples) -> NoReturn:
        _refuse()

    def rule(self, time: DecisionTime) -> StopRule:
        _refuse()


def _refuse() -> NoReturn:
    raise InputError(
        "these weights were trained without halting; choose others, or end the loop by a stop rule "
        "such as haltwise.stop_rules.FixedBudget"
    )


METHODS = {"none": NoHalting}
