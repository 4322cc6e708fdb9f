"""What meta-training minimises: one entry of `POSTERIORS` a way to learn halting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from haltwise.halting.halter import AFTER, BEFORE, HaltingOutput
from haltwise.halting.posteriors import GravesPosterior, objectives
from haltwise.halting.priors import HorizonPrior
from haltwise.halting.objectives import (
    continuation_value,
    cumulative_logits,
    distillation,
    free_energy,
    halting_bound,
    optimal_free_energy,
    ponder_objective,
    stick_breaking_log_prob,
    sum_of_losses,
)
from haltwise.models.optimizer_model import OptimizerModel

if TYPE_CHECKING:
    from haltwise.training.config import TrainingConfig

__all__ = ["POSTERIORS", "MetaObjective"]


@final
class MetaObjective:
    """What is minimised, per problem, in units of the default price.

    Args:
        config: Of the run; names the posterior.
        optimizer: Whose head speaks of theta_0 before anything is known.
    """

    def __init__(self, config: TrainingConfig, optimizer: OptimizerModel) -> None:
        self.config, self.optimizer = config, optimizer

    def __call__(
        self,
        excess: Tensor,
        halting: HaltingOutput,
        price: Tensor,
        hazard_temperature: float,
        generator: torch.Generator,
    ) -> Tensor:
        """The objective of rule and head together, shape [B]; see `halting`."""
        losses = self.losses(excess)
        if self.config.posterior == "none":
            return losses
        halts = self.halting(excess, halting, price, hazard_temperature, generator)
        return halts + self.config.sum_weight * losses

    def losses(self, excess: Tensor) -> Tensor:
        """The rule's alone: the mean loss over steps 1..T (L2L), shape [B]."""
        return sum_of_losses(excess) / (self.config.horizon * self.config.price)

    def halting(
        self,
        excess: Tensor,
        halting: HaltingOutput,
        price: Tensor,
        hazard_temperature: float,
        generator: torch.Generator,
        *,
        distilled: bool = True,
    ) -> Tensor:
        """The head's alone, shape [B].

        Args:
            excess: Scored loss at theta_0..theta_T, shape [B, T+1].
            halting: What the head said at theta_0..theta_{T-1}; finite.
            price: c, shape [B].
            hazard_temperature: tau of the stick-breaking posterior, in prices.
            generator: Draws the horizons where they are sampled.
            distilled: Whether a hazard that learns by the free energy is distilled instead, which
                it must be at first; see `_free_energy`.
        """
        config = self.config
        rollout = _Rollout(
            config,
            self.optimizer,
            excess,
            halting,
            price,
            hazard_temperature * price,
            "distillation"
            if distilled and config.hazard_objective == "free-energy"
            else config.hazard_objective,
            generator,
        )
        terms = POSTERIORS[config.posterior]
        return torch.stack([term(rollout) for term in terms]).mean(0)


class _Rollout(NamedTuple):
    """What the terms of the objective are functions of; see `MetaObjective.halting`."""

    config: TrainingConfig
    optimizer: OptimizerModel
    excess: Tensor
    halting: HaltingOutput
    price: Tensor
    hazard_temperature: Tensor
    hazard_objective: str
    generator: torch.Generator

    def stops(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """For both times of decision: losses [B, K+1] of stopping at each step, hazards [B, K].

        Counting updates, a stop at t = 0..T returns theta_t. Counting gradients, one decided at
        t = 0..T-1 has paid for gamma_t and returns theta_t with the head's probability of holding,
        else theta_{t+1}; the entropy of that choice belongs to the posterior's,
        docs/theory.md, Eq. (hold).
        """
        _, hazard_logits, hold_logits = self.halting
        log_hold, log_take = logsigmoid(hold_logits), logsigmoid(-hold_logits)
        tau = self.hazard_temperature.unsqueeze(1)
        returned = log_hold.exp() * (self.excess[:, :-1] + tau * log_hold) + log_take.exp() * (
            self.excess[:, 1:] + tau * log_take
        )
        return (
            (self.excess, hazard_logits[..., AFTER]),
            (returned, hazard_logits[:, :-1, BEFORE]),
        )

    def increment_streams(self) -> list[Tensor]:
        """Of both times of decision, [B, T]."""
        increments = self.halting.increments
        # `BEFORE` speaks of the step to come; theta_0 is judged when only the price is known.
        first = self.optimizer.first_increment(self.price).unsqueeze(1)
        return [increments[..., AFTER], torch.cat((first, increments[:, :-1, BEFORE]), dim=1)]


def _softmax(rollout: _Rollout) -> Tensor:
    """Minus the thesis' bound, in temperatures, shape [B]."""
    temperature = rollout.optimizer.temperature(rollout.price)
    weights = _horizon_weights(rollout, temperature)
    bound = sum(
        halting_bound(
            rollout.excess,
            cumulative_logits(increments),
            price=rollout.price,
            temperature=temperature,
            horizon_weights=weights,
        )
        for increments in rollout.increment_streams()
    )
    return -bound / (2 * temperature)


def _stick_breaking(rollout: _Rollout) -> Tensor:
    """What the causal hazard is learned by, in prices, shape [B]."""
    learn = _HAZARD_OBJECTIVES[rollout.hazard_objective]
    return torch.stack([learn(rollout, *stop) for stop in rollout.stops()]).mean(0)


def _free_energy(rollout: _Rollout, losses: Tensor, hazard_logits: Tensor) -> Tensor:
    """What stops really cost; only for a hazard that stops somewhere sensible already.

    A new one stops at random, often where the loss is a thousand prices high. It learns within a
    few steps never to stop at all, where the gradient vanishes (Chen et al. 2020 report the like).
    """
    tau = rollout.hazard_temperature
    log_prob = stick_breaking_log_prob(hazard_logits)
    return free_energy(losses, log_prob, price=rollout.price, temperature=tau) / rollout.price


def _distillation(rollout: _Rollout, losses: Tensor, hazard_logits: Tensor) -> Tensor:
    """Cross-entropy to the optimum for the hazard, the optimum's free energy for all else."""
    tau = rollout.hazard_temperature
    entropy = distillation(losses, hazard_logits, price=rollout.price, temperature=tau)
    return entropy + _optimum(rollout, losses)


def _value(rollout: _Rollout, losses: Tensor, hazard_logits: Tensor) -> Tensor:
    """Regression for the hazard, the optimum's free energy for all else."""
    error = continuation_value(losses, hazard_logits, price=rollout.price)
    return error + _optimum(rollout, losses)


def _optimum(rollout: _Rollout, losses: Tensor) -> Tensor:
    tau = rollout.hazard_temperature
    return optimal_free_energy(losses, price=rollout.price, temperature=tau) / rollout.price


def _graves(rollout: _Rollout) -> Tensor:
    """Expected loss and ponder cost (Graves 2016), in prices, shape [B]."""
    _, halting_logits, _ = rollout.halting
    cost = sum(
        ponder_objective(losses, GravesPosterior(logits), price=rollout.price)
        for losses, logits in (
            (rollout.excess, halting_logits[..., AFTER]),
            (rollout.excess[:, 1:], halting_logits[:, :-1, BEFORE]),
        )
    )
    return cost / (2 * rollout.price)


def _horizon_weights(rollout: _Rollout, temperature: Tensor) -> Tensor:
    """pi_T, shape [T+1] or [B, T+1]."""
    config, price = rollout.config, rollout.price
    if config.continuation is None:
        prior = HorizonPrior(torch.exp(-2 * price / temperature))
    else:
        prior = HorizonPrior(torch.full_like(price, config.continuation))
    if config.horizons == "exact":
        return prior.weights(config.horizon)
    sampled = prior.sample(generator=rollout.generator).clamp_max(config.horizon).long()
    return torch.nn.functional.one_hot(sampled, config.horizon + 1).to(price.dtype)


_HAZARD_OBJECTIVES: Mapping[str, Callable[[_Rollout, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"free-energy": _free_energy, "distillation": _distillation, "value": _value}
)
"""Each of the losses [B, K+1] of stopping at each step and the hazards [B, K], in prices, [B]."""

POSTERIORS: Mapping[str, tuple[Callable[[_Rollout], Tensor], ...]] = MappingProxyType(
    {
        "none": (),
        "softmax": (_softmax,),
        "stick-breaking": (_stick_breaking,),
        "graves": (_graves,),
        "both": (_softmax, _stick_breaking),
        **{name: (term,) for name, term in objectives().items()},
    }
)
"""By what halting is learned: the mean of these terms, each of both times of decision. Files of
`haltwise.halting.posteriors` may bring more."""
