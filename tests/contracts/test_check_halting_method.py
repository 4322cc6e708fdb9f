"""`check_halting_method` finds what is wrong with methods that are broken on purpose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from haltwise.halting import (
    HaltingExamples,
    HaltingMethod,
    Posterior,
    SoftmaxPosterior,
    StickBreaking,
    StickBreakingPosterior,
)
from haltwise.halting.objectives import free_energy
from haltwise.processes import Trajectory
from haltwise.stop_rules import (
    CostUnit,
    DecisionTime,
    GradientNorm,
    HazardThreshold,
    PosteriorMode,
    ReturnedIterate,
    StopPolicy,
    StopRule,
)
from haltwise.testing import check_halting_method


@dataclass(frozen=True)
class Sound(HaltingMethod):
    """A hazard that learns by its free energy; what the broken ones are made from."""

    temperature: float = 0.5

    output_sizes: ClassVar[Mapping[str, int]] = MappingProxyType({"hazard_logits": 2})

    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return self.split(raw)

    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        return StickBreakingPosterior(outputs["hazard_logits"][..., time])

    def objective(self, examples: HaltingExamples) -> Tensor:
        energies = [
            free_energy(
                examples.excess,
                self.posterior(examples.outputs, time).log_prob(),
                price=examples.price,
                temperature=self.temperature * examples.price,
            )
            for time in DecisionTime
        ]
        return (energies[0] + energies[1]) / examples.price

    def rule(self, time: DecisionTime) -> StopRule:
        return HazardThreshold(0.0, time)


class PutsOutAnotherShape(Sound):
    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return {"hazard_logits": raw[..., 0]}


class PutsOutAnotherName(Sound):
    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return {"logits": raw}


class BeginsAtInfinity(Sound):
    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return {"hazard_logits": raw.abs().log()}


class LeavesSomeProbabilityOut(Sound):
    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        class Leaky(SoftmaxPosterior):  # type: ignore[misc]
            def log_prob(self) -> Tensor:
                return super().log_prob() - 0.1

        logits = outputs["hazard_logits"][..., time]
        return Leaky(torch.cat((logits, logits[:, :1]), 1))


class HaltsAfterTheHorizon(Sound):
    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        logits = outputs["hazard_logits"][..., time]
        return StickBreakingPosterior(torch.cat((logits, logits), 1))


class SumsOverItems(Sound):
    def objective(self, examples: HaltingExamples) -> Tensor:
        return super().objective(examples).sum()


class AveragesOverItems(Sound):
    def objective(self, examples: HaltingExamples) -> Tensor:
        value = super().objective(examples)
        return value - value.detach().mean()


class CannotBegin(Sound):
    def objective(self, examples: HaltingExamples) -> Tensor:
        value = super().objective(examples)
        return value / examples.progress if examples.progress is not None else value


class CutsItsGradient(Sound):
    def objective(self, examples: HaltingExamples) -> Tensor:
        logits = examples.outputs["hazard_logits"]
        return super().objective(examples) * logits.detach()[:, 0, 0]


class LearnsNothing(Sound):
    def objective(self, examples: HaltingExamples) -> Tensor:
        return super().objective(examples).detach()


class StopsByAnotherMethod(Sound):
    def rule(self, time: DecisionTime) -> StopRule:
        return PosteriorMode(time)


class StopsByTheGradient(Sound):
    def candidates(
        self, trajectory: Trajectory, costs: Tensor, time: DecisionTime
    ) -> Sequence[StopRule]:
        return [HazardThreshold(0.0, time), GradientNorm(0.0)]


class TriesNumbers(Sound):
    def candidates(
        self, trajectory: Trajectory, costs: Tensor, time: DecisionTime
    ) -> Sequence[Any]:
        return [0.5]


class NeedsWhatItDoesNotOffer(Sound):
    @property
    def needs_calibration(self) -> bool:
        return True


class ReturnsWhatIsNotPaidFor(Sound):
    def returns(self, unit: CostUnit) -> ReturnedIterate:
        return ReturnedIterate.NEXT


class HasAPolicyOfNothing(Sound):
    def policy(self, unit: CostUnit) -> StopPolicy:
        nothing: Any = None
        return StopPolicy(nothing, ReturnedIterate.CURRENT)


class ForecastsTheOpposite(Sound):
    def forecast_gain(
        self, outputs: Mapping[str, Tensor], rule: StopRule, price: Tensor
    ) -> Tensor | None:
        assert isinstance(rule, HazardThreshold)
        return price + outputs["hazard_logits"][..., rule.time]


class HasHazardsBeyondOne(Sound):
    def hazards(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Tensor:
        return outputs["hazard_logits"][..., time].exp()


@dataclass(frozen=True)
class IsSetByTensors(Sound):
    prices: tuple[float, ...] = field(default=(1.0, 2.0))


class IsNoOneButHalts(Sound):
    output_sizes: ClassVar[Mapping[str, int]] = MappingProxyType({})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (PutsOutAnotherShape(), "outputs must have the shapes"),
        (PutsOutAnotherName(), "outputs must have the shapes"),
        (BeginsAtInfinity(), "a new halter, whose raw outputs are zero, must be finite"),
        (LeavesSomeProbabilityOut(), "probabilities that sum to one"),
        (
            HaltsAfterTheHorizon(),
            r"log_prob of the posterior .* must have shape \[5, 8\], got \[5, 15\]",
        ),
        (SumsOverItems(), r"the objective must have shape \[5\], got \[\]"),
        (AveragesOverItems(), "the objective of item 0 depends on other items"),
        (CannotBegin(), "the objective must be finite at progress 0.0"),
        (CutsItsGradient(), "not that of finite differences"),
        (LearnsNothing(), "does not depend on the outputs hazard_logits: nothing is learned"),
        (StopsByAnotherMethod(), "must need nothing but losses and .* increments is needed"),
        (StopsByTheGradient(), "must need nothing but losses and .* log_grad_norm is needed"),
        (TriesNumbers(), "0.5 is no StopRule"),
        (NeedsWhatItDoesNotOffer(), "needs calibration must offer candidates"),
        (ReturnsWhatIsNotPaidFor(), "which is not returnable at the cost of updates"),
        (HasAPolicyOfNothing(), "the policy of updates has no stop rule but None"),
        (ForecastsTheOpposite(), "must stop where the forecast gain is below the price"),
        (HasHazardsBeyondOne(), "hazards must be probabilities"),
        (IsSetByTensors(), "the settings do not survive JSON"),
        (IsNoOneButHalts(), "a method without outputs must refuse"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HaltingMethod) else "",
)
def test_a_broken_method_is_found_out(method: HaltingMethod, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_halting_method(method)


def test_outputs_that_are_data_on_purpose_must_be_named() -> None:
    method = StickBreaking("distillation")
    check_halting_method(method, detached=["hold_logits"])
    with pytest.raises(AssertionError, match="not that of finite differences"):
        check_halting_method(method)
    with pytest.raises(AssertionError, match=r"detached names \['holds'\]"):
        check_halting_method(method, detached=["holds"])


def test_a_sound_method_passes() -> None:
    check_halting_method(Sound())
