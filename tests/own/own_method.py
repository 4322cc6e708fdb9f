"""A halting method of one's own: the stopping time is uniform over the first steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from haltwise.halting import HaltingExamples, HaltingMethod, Posterior
from haltwise.processes import StepObservation
from haltwise.stop_rules import DecisionTime, StopRule


@dataclass(frozen=True)
class StopAtThird(StopRule):
    """Stop at step `last`, whatever the halter puts out."""

    last: int = 3

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("the third step is always the last",)

    def step(
        self, observation: StepObservation, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        observation.known("own_logits")  # the outputs of this method reach its rule
        return torch.full_like(observation.loss, observation.step >= self.last).bool(), memory


@dataclass(frozen=True)
class Third(Posterior):
    """All mass on step `last`."""

    logits: Tensor
    last: int

    def log_prob(self) -> Tensor:
        horizon = self.logits.shape[1]
        steps = torch.arange(horizon + 1).expand(len(self.logits), -1)
        return torch.where(steps == min(self.last, horizon), 0.0, -torch.inf)


@dataclass(frozen=True)
class AlwaysThird(HaltingMethod):
    """Stop at the third step; the outputs learn the number 7, to be recognized."""

    last: int = 3
    """The step at which everything stops."""

    output_sizes: ClassVar[Mapping[str, int]] = MappingProxyType({"own_logits": 1})

    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return self.split(raw)

    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        return Third(outputs["own_logits"], self.last)

    def objective(self, examples: HaltingExamples) -> Tensor:
        return (examples.outputs["own_logits"] - 7).square().mean(1)

    def rule(self, time: DecisionTime) -> StopRule:
        return StopAtThird(self.last)
