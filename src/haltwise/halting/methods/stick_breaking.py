"""A causal hazard, trained on its free energy at a low temperature (PonderNet, Banino 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from haltwise._core.errors import require
from haltwise._core.settings import require_positive
from haltwise._core.tensors import widened
from haltwise.halting.methods.base import HaltingExamples, HaltingMethod
from haltwise.halting.objectives import (
    continuation_value,
    distillation,
    free_energy,
    optimal_free_energy,
)
from haltwise.halting.posteriors import (
    Posterior,
    StickBreakingPosterior,
    stick_breaking_log_prob,
)
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    CostUnit,
    DecisionTime,
    HazardThreshold,
    ReturnedIterate,
    StopRule,
)

__all__ = ["StickBreaking"]

_LEARN_BY = ("free-energy", "distillation", "value")
_FIRST_LOGIT = -2.0  # log-odds of a new halter: it goes on for about 8 steps, and takes the update
_AFTER, _BEFORE = DecisionTime.AFTER_GRADIENT, DecisionTime.BEFORE_GRADIENT


@final
@dataclass(frozen=True)
class StickBreaking(HaltingMethod):
    """Learn the probability of stopping at each step, given what is known there.

    Outputs `hazard_logits` [..., 2], log-odds of stopping given that the step was reached, for
    both times of decision; and `hold_logits` [...], log-odds that theta_t is better than
    theta_{t+1} for a stop that has paid for gamma_t.
    """

    learn_by: Literal["free-energy", "distillation", "value"] = "free-energy"
    """What the hazard is learned by: its free energy, its distance to the free energy's optimum,
    or a forecast of what going on costs (`haltwise.halting.objectives`)."""
    distilled: float = 0.3
    """Share of the halter's own steps, at the start, in which distillation stands in for the free
    energy; while the update rule is trained beside it, it always does."""
    temperature: float = 0.5
    """Temperature of the posterior, in prices."""
    final_temperature: float = 0.2
    """Temperature to which it falls while the halter is trained by itself, in prices."""

    output_sizes: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"hazard_logits": 2, "hold_logits": 1}
    )

    def __post_init__(self) -> None:
        require(
            self.learn_by in _LEARN_BY,
            f"learn_by must be one of {', '.join(_LEARN_BY)}, got {self.learn_by!r}",
        )
        require_positive(self, "temperature", "final_temperature")
        require(
            0 <= self.distilled <= 1, f"distilled must lie between 0 and 1, got {self.distilled}"
        )

    @property
    def needs_calibration(self) -> bool:
        return True

    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return {name: value + _FIRST_LOGIT for name, value in self.split(raw).items()}

    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        return StickBreakingPosterior(outputs["hazard_logits"][..., time])

    def objective(self, examples: HaltingExamples) -> Tensor:
        """The mean over both times of decision of what the hazard is learned by."""
        learn_by, tau = self._schedule(examples)
        costs = [
            _learn(learn_by, losses, hazard_logits, examples.price, tau)
            for losses, hazard_logits in _stops(examples, tau)
        ]
        return torch.stack(costs).mean(0)

    def exit_objective(self, examples: HaltingExamples) -> Tensor:
        learn_by, tau = self._schedule(examples)
        hazard_logits = examples.outputs["hazard_logits"][..., _AFTER]
        return _learn(learn_by, examples.excess, hazard_logits, examples.price, tau)

    def _schedule(self, examples: HaltingExamples) -> tuple[str, Tensor]:
        """What the hazard is learned by now, and the temperature in units of the loss, [B]."""
        progress, learn_by = examples.progress, self.learn_by
        if learn_by == "free-energy" and (progress is None or progress < self.distilled):
            learn_by = "distillation"
        cooling = (self.final_temperature / self.temperature) ** (progress or 0.0)
        return learn_by, self.temperature * cooling * examples.price

    def rule(self, time: DecisionTime) -> StopRule:
        return HazardThreshold(0.0, time)

    def returns(self, unit: CostUnit) -> ReturnedIterate:
        learned = unit is CostUnit.GRADIENTS
        return ReturnedIterate.LEARNED if learned else super().returns(unit)

    def candidates(
        self, trajectory: Trajectory, costs: Tensor, time: DecisionTime
    ) -> Sequence[StopRule]:
        return HazardThreshold.candidates(trajectory, costs, time)

    def hazards(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Tensor:
        return widened(outputs["hazard_logits"][..., time]).sigmoid()

    def forecast_gain(
        self, outputs: Mapping[str, Tensor], rule: StopRule, price: Tensor
    ) -> Tensor | None:
        """The gain that makes the hazard what it is: price - tau (log-odds - threshold).

        At the optimum the log-odds of stopping are (what going on costs - what stopping costs) /
        tau, docs/theory.md, Eq. (target), where a forecast of that has a tau of the price, Eq.
        (value); the threshold is where calibration found the two equal.
        """
        if not isinstance(rule, HazardThreshold):
            return None
        margin = outputs["hazard_logits"][..., rule.time] - rule.threshold
        unit = 1.0 if self.learn_by == "value" else self.final_temperature
        return price - unit * price * margin


def _stops(examples: HaltingExamples, tau: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """For both times of decision: losses [B, T+1] of stopping at each step, hazards [B, T].

    Counting updates, a stop at t = 0..T returns theta_t. Counting gradients, one decided at
    t = 0..T-1 has paid for gamma_t and returns theta_t with the learned probability of holding,
    else theta_{t+1}; the entropy of that choice belongs to the posterior's,
    docs/theory.md, Eq. (hold).
    """
    excess, outputs = examples.excess, examples.outputs
    hazard_logits, hold_logits = outputs["hazard_logits"], outputs["hold_logits"]
    log_hold, log_take = logsigmoid(hold_logits), logsigmoid(-hold_logits)
    tau = tau.unsqueeze(1)
    returned = log_hold.exp() * (excess[:, :-1] + tau * log_hold) + log_take.exp() * (
        excess[:, 1:] + tau * log_take
    )
    return (
        (excess, hazard_logits[..., _AFTER]),
        (returned, hazard_logits[:, :-1, _BEFORE]),
    )


def _learn(
    learn_by: str, losses: Tensor, hazard_logits: Tensor, price: Tensor, tau: Tensor
) -> Tensor:
    """What one hazard [B, T] is learned by, given the losses [B, T+1] of stops, in prices, [B].

    The free energy is the true cost of stops, but only for a hazard that stops somewhere sensible
    already. A new one stops at random, often where the loss is a thousand prices high. It learns
    within a few steps never to stop at all, where the gradient vanishes (Chen et al. 2020 report
    the like). Whatever else it learns by, all but the hazard learns by the optimum's free energy.
    """
    if learn_by == "free-energy":
        log_prob = stick_breaking_log_prob(hazard_logits)
        return free_energy(losses, log_prob, price=price, temperature=tau) / price
    if learn_by == "distillation":
        error = distillation(losses, hazard_logits, price=price, temperature=tau)
    else:
        error = continuation_value(losses, hazard_logits, price=price)
    return error + optimal_free_energy(losses, price=price, temperature=tau) / price


METHODS = {"stick-breaking": StickBreaking}
