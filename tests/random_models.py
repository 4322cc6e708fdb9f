"""Models that nobody trained, whose halters put out something else at every step."""

from dataclasses import replace
from typing import Any

from draws import seeded
from torch import nn

from haltwise.halting import HalterSettings
from haltwise.models import Card, Choice, OptimizerModel
from haltwise.stop_rules import CostUnit, HazardThreshold, StopPolicy

__all__ = ["random_model", "with_threshold"]

DEFAULTS: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_size": 3},
    "adam": {"learning_rate": 0.1},
    "sgd": {"learning_rate": 0.1},
}


def random_model(
    rule: str = "lstm",
    method: str = "stick-breaking",
    *,
    price: float = 0.05,
    horizon: int = 7,
    seed: int = 1,
    threshold: float = -2.0,
    halter: HalterSettings | None = None,
    **settings: Any,
) -> OptimizerModel:
    """A random optimizer model that stops by its method's rule.

    Args:
        rule: Name of the update rule.
        method: Name of the halting method.
        price: c on its card.
        horizon: T on its card.
        seed: Of the weights.
        threshold: Where the method has one, log-odds at which it stops.
        halter: Its shape; small if None.
        settings: Of the update rule.
    """
    card = Card(
        method=Choice(method),
        price=price,
        horizon=horizon,
        rule=Choice(rule, settings or DEFAULTS.get(rule, {})),
        halter=halter or HalterSettings(width=5, memory=4),
    )
    model = OptimizerModel(card, seeded(seed))
    if model.halting.halter is not None:  # a new one puts out the same at every step
        nn.init.normal_(model.halting.halter.weights[-1], std=0.5, generator=seeded(seed))
        policies = {unit: model.halting.method.policy(unit) for unit in CostUnit}
        model.halting.card = replace(card, policies=policies)
        with_threshold(model, threshold)
    return model


def with_threshold(model: OptimizerModel, threshold: float) -> OptimizerModel:
    """The same model, stopping at other log-odds where its method has a threshold."""
    card = model.card
    policies = dict(card.policies)
    for unit, (rule, returns) in card.policies.items():
        if isinstance(rule, HazardThreshold):
            policies[unit] = StopPolicy(HazardThreshold(threshold, rule.time), returns)
    model.halting.card = replace(card, policies=policies)
    return model
