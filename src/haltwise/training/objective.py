"""What meta-training minimises: one entry of `POSTERIORS` a way to learn halting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from haltwise.halting.head import AFTER, BEFORE, HaltingOutput
from haltwise.halting.posteriors import GravesPosterior
from haltwise.halting.priors import HorizonPrior
from haltwise.objectives import (
    cumulative_logits,
    free_energy,
    halting_bound,
    ponder_objective,
    stick_breaking_log_prob,
    sum_of_losses,
)
from haltwise.optimizer import LearnedOptimizer

if TYPE_CHECKING:
    from haltwise.training.config import TrainingConfig

__all__ = ["POSTERIORS", "MetaObjective"]

_CERTAIN = 30.0  # log-odds


@final
class MetaObjective:
    """What is minimised, per problem, in units of the default price.

    Args:
        config: Of the run; names the posterior.
        optimizer: Whose head speaks of theta_0 before anything is known.
    """

    def __init__(self, config: TrainingConfig, optimizer: LearnedOptimizer) -> None:
        self.config, self.optimizer = config, optimizer

    def __call__(
        self,
        excess: Tensor,
        halting: HaltingOutput,
        price: Tensor,
        generator: torch.Generator,
        *,
        warm: bool,
    ) -> Tensor:
        """The objective of each problem, shape [B].

        Args:
            excess: Scored loss at theta_0..theta_T, shape [B, T+1].
            halting: What the head said at theta_0..theta_{T-1}, each [B, T, 2]; finite.
            price: c, shape [B].
            generator: Draws the horizons where they are sampled.
            warm: Whether the warm-up is over; before, the losses count alone.
        """
        config = self.config
        mean_loss = sum_of_losses(excess) / (config.horizon * config.price)
        terms = POSTERIORS[config.posterior]
        if not terms or not warm:
            return mean_loss
        rollout = _Rollout(config, self.optimizer, excess, halting, price, generator)
        mean_term = torch.stack([term(rollout) for term in terms]).mean(0)
        return mean_term + config.sum_weight * mean_loss


class _Rollout(NamedTuple):
    """What the terms of the objective are functions of; see `MetaObjective.__call__`."""

    config: TrainingConfig
    optimizer: LearnedOptimizer
    excess: Tensor
    halting: HaltingOutput
    price: Tensor
    generator: torch.Generator

    def hazard_streams(self) -> list[Tensor]:
        """Of both times of decision, [B, T]; nobody stops at theta_0 before a gradient is seen."""
        never = torch.full_like(self.price, -_CERTAIN)
        hazard_logits = self.halting.hazard_logits
        return [_stream(hazard_logits, None, AFTER), _stream(hazard_logits, never, BEFORE)]

    def increment_streams(self) -> list[Tensor]:
        """Of both times of decision, [B, T]."""
        first = self.optimizer.first_increment(self.price)
        increments = self.halting.increments
        return [_stream(increments, None, AFTER), _stream(increments, first, BEFORE)]


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
    """The free energy of the causal hazard, in prices, shape [B]."""
    energy = sum(
        free_energy(
            rollout.excess,
            stick_breaking_log_prob(hazard_logits),
            price=rollout.price,
            temperature=rollout.config.hazard_temperature * rollout.price,
        )
        for hazard_logits in rollout.hazard_streams()
    )
    return energy / (2 * rollout.price)


def _graves(rollout: _Rollout) -> Tensor:
    """Expected loss and ponder cost (Graves 2016), in prices, shape [B]."""
    cost = sum(
        ponder_objective(rollout.excess, GravesPosterior(halting_logits), price=rollout.price)
        for halting_logits in rollout.hazard_streams()
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


def _stream(values: Tensor, first: Tensor | None, output: int) -> Tensor:
    """What is said about theta_0..theta_{T-1}, of values [B, T, 2] said there; shape [B, T].

    `BEFORE` speaks of the step to come, so it starts with `first`, what is said about theta_0.
    """
    if first is None:
        return values[..., output]
    return torch.cat((first.unsqueeze(1), values[:, :-1, output]), dim=1)


POSTERIORS: Mapping[str, tuple[Callable[[_Rollout], Tensor], ...]] = MappingProxyType(
    {
        "none": (),
        "softmax": (_softmax,),
        "stick-breaking": (_stick_breaking,),
        "graves": (_graves,),
        "both": (_softmax, _stick_breaking),
    }
)
"""By what halting is learned: the mean of these terms, each of both times of decision."""
