"""The thesis' method: a softmax posterior given a horizon, its bound, and its mode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import require_positive
from haltwise.halting.methods.base import HaltingExamples, HaltingMethod
from haltwise.halting.objectives import cumulative_logits, halting_bound
from haltwise.halting.posteriors import Posterior, SoftmaxPosterior
from haltwise.halting.priors import HorizonPrior
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import DecisionTime, PosteriorMode, StopRule

__all__ = ["Softmax"]

_AFTER, _BEFORE = DecisionTime.AFTER_GRADIENT, DecisionTime.BEFORE_GRADIENT


@final
@dataclass(frozen=True)
class Softmax(HaltingMethod):
    """Learn increments of a logit whose softmax over 0..T is the posterior (thesis Eq. 9-10).

    Outputs `increments`, delta_t in units of the temperature with the prior's own increment
    log r = -c / tau included: [..., 2] for both times of decision, or [...] with the gradient in
    hand alone; docs/theory.md, Eq. (logits).
    A new halter, whose raw outputs are zero, reproduces the prior and starts at KL = 0.
    """

    temperature: float | None = None
    """Temperature in units of the loss; none lets it follow the price."""
    temperature_per_price: float = 1.0
    """Temperature in prices where it follows the price."""
    continuation: float | None = 0.9
    """Continuation probability nu of the horizon prior; none couples it to the price as the thesis
    does, exp(-2 c / tau)."""
    horizons: Literal["exact", "sampled"] = "exact"
    """Whether the expectation over horizons is exact or by one sample per problem."""
    calibrated: bool = True
    """Whether the step below which the mode is not sought is chosen on calibration problems."""

    before_gradient: bool = True
    """Whether a second increment is learned, for decisions before the gradient; the thesis has
    one, and decides with the gradient in hand whatever is paid for."""

    def __post_init__(self) -> None:
        require_positive(self, "temperature", "temperature_per_price")
        require(
            self.continuation is None or 0 < self.continuation < 1,
            f"continuation must lie strictly between 0 and 1, got {self.continuation}",
        )
        require(
            self.horizons in ("exact", "sampled"),
            f"horizons must be one of exact, sampled, got {self.horizons!r}",
        )

    @property
    def output_sizes(self) -> Mapping[str, int]:
        return {"increments": 2 if self.before_gradient else 1}

    @property
    def has_initial(self) -> bool:
        return self.before_gradient

    @property
    def needs_calibration(self) -> bool:
        return self.calibrated

    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        log_ratio = -price / self._temperature(price)  # log r, the prior's increment of the logit
        increments = self.split(raw)["increments"]
        return {"increments": increments + log_ratio.reshape(-1, *[1] * (increments.ndim - 1))}

    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        return SoftmaxPosterior(cumulative_logits(self._stream(outputs["increments"], time)))

    def objective(self, examples: HaltingExamples) -> Tensor:
        """Minus the thesis' bound (Eq. 8), in temperatures; the mean over both times of decision.

        With one increment it is the bound itself.
        """
        increments = examples.outputs["increments"]
        streams = [self._stream(increments, _AFTER)]
        if self.before_gradient:
            # There the step to come is judged; step 0 when only the price is known.
            first = examples.initial["increments"][:, _BEFORE].unsqueeze(1)
            streams.append(torch.cat((first, increments[:, :-1, _BEFORE]), dim=1))
        bound = self._bound(examples, streams)
        return -bound / (len(streams) * self.objective_unit(examples.price))

    def objective_unit(self, price: Tensor) -> Tensor:
        """Tau, the temperature."""
        return self._temperature(price)

    def exit_objective(self, examples: HaltingExamples) -> Tensor:
        """Minus the thesis' bound (Eq. 8), in temperatures."""
        increments = self._stream(examples.outputs["increments"], _AFTER)
        return -self._bound(examples, [increments]) / self.objective_unit(examples.price)

    def _bound(self, examples: HaltingExamples, streams: Sequence[Tensor]) -> Tensor:
        """The sum over streams of increments, each [B, T], in units of the loss."""
        price = examples.price
        temperature = self._temperature(price)
        weights = self._horizon_weights(examples, temperature)
        bounds = [
            halting_bound(
                examples.excess,
                cumulative_logits(stream),
                price=price,
                temperature=temperature,
                horizon_weights=weights,
            )
            for stream in streams
        ]
        return torch.stack(bounds).sum(0)

    def rule(self, time: DecisionTime) -> StopRule:
        return PosteriorMode(self._decided(time))

    def candidates(
        self, trajectory: Trajectory, costs: Tensor, time: DecisionTime
    ) -> Sequence[StopRule]:
        return PosteriorMode.candidates(trajectory, costs, self._decided(time))

    def forecast_gain(
        self, outputs: Mapping[str, Tensor], rule: StopRule, price: Tensor
    ) -> Tensor | None:
        """Tau delta_t + c, docs/theory.md, Eq. (gain)."""
        if not isinstance(rule, PosteriorMode):
            return None
        increments = self._stream(outputs["increments"], rule.time)
        return self._temperature(price) * increments + price

    def _decided(self, time: DecisionTime) -> DecisionTime:
        """When the rule for decisions at this time is asked."""
        return time if self.before_gradient else _AFTER

    def _stream(self, increments: Tensor, time: DecisionTime) -> Tensor:
        """delta_t that a decision at this time reads."""
        return increments[..., time] if self.before_gradient else increments

    def _temperature(self, price: Tensor) -> Tensor:
        """Tau in units of the loss, shape [B]."""
        if self.temperature is not None:
            return torch.full_like(price, self.temperature)
        return self.temperature_per_price * price

    def _horizon_weights(self, examples: HaltingExamples, temperature: Tensor) -> Tensor:
        """pi_T, shape [T+1] or [B, T+1]."""
        price, horizon = examples.price, examples.excess.shape[1] - 1
        if self.continuation is None:
            prior = HorizonPrior(torch.exp(-2 * price / temperature))
        else:
            prior = HorizonPrior(torch.full_like(price, self.continuation))
        if self.horizons == "exact":
            return prior.weights(horizon)
        sampled = prior.sample(examples.generator).clamp_max(horizon).long()
        return torch.nn.functional.one_hot(sampled, horizon + 1).to(price.dtype)


METHODS = {"softmax": Softmax}
