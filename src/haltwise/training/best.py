"""The best weights of a run so far, and the card they come with."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from haltwise._core.json import to_json
from haltwise._core.nested_settings import Choice
from haltwise._core.version import __version__
from haltwise.models.card import Card
from haltwise.models.files import Model, halting_of
from haltwise.stop_rules import RETURNABLE, CostUnit, FixedBudget, StopPolicy
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import Source

__all__ = ["UNRANKED", "Best", "blank_card", "trained_card"]

UNRANKED = (math.inf, math.inf)
"""The rank that any weights beat."""


class Best(NamedTuple):
    """The best weights and their card, without policies until these are calibrated."""

    weights: dict[str, Tensor]
    card: Card


def blank_card(settings: TrainingSettings, source: Source) -> Card:
    """Describe what the model is made of and trained for, before any training."""
    family = None
    if settings.runs is None:
        family = Choice(settings.family.name, source.description["family_settings"])
    return Card(
        method=settings.method,
        price=settings.price,
        horizon=settings.horizon,
        rule=None if settings.rule.name == "none" else settings.rule,
        halter=settings.halter,
        price_range=settings.price_range,
        unit=source.unit,
        observed=source.observed,
        keeps_best=settings.keeps_best,
        family=family,
    )


def trained_card(
    model: Model,
    settings: TrainingSettings,
    *,
    command: str,
    meta_step: int,
    seconds: float,
    metrics: Mapping[str, float],
) -> Card:
    """Describe weights as trained so far; policies that need calibration are left out."""
    halting = halting_of(model)
    policies: Mapping[CostUnit, StopPolicy] = {}
    if not halting.halts:
        budget = FixedBudget(settings.horizon)
        policies = {unit: StopPolicy(budget, RETURNABLE[unit][0]) for unit in CostUnit}
    elif not halting.method.needs_calibration:
        policies = {unit: halting.method.policy(unit) for unit in CostUnit}
    return replace(
        model.card,
        policies=policies,
        provenance={
            "settings": settings.to_json(),
            "command": command,
            "meta_step": meta_step,
            "seconds": round(seconds, 1),
            "metrics": to_json(metrics),
            "versions": {"haltwise": __version__, "torch": torch.__version__},
        },
    )
