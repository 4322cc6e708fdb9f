"""Training that begins from other weights: their settings, then the weights themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from haltwise._core import plugins
from haltwise._core.errors import require
from haltwise._core.nested_settings import Choice
from haltwise.models.files import Model, halting_of
from haltwise.models.loading import card_of, load, load_halting
from haltwise.models.optimizer_model import OptimizerModel

__all__ = ["begin_from", "brought_settings"]


def brought_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Take the settings of a rule or a halter from the cards of the weights that are asked for.

    Raises:
        InputError: There are no such weights, or `asked` names others of their settings.
    """
    brought: dict[str, Any] = {}
    if asked.get("rule_from") is not None:
        rule = card_of(asked["rule_from"]).rule
        require(
            rule is not None,
            f"{asked['rule_from']} has no update rule to begin with; drop rule_from",
        )
        assert rule is not None
        brought["rule"] = _brought_choice("rule", rule, "rule_from", asked)
    if asked.get("halter_from") is not None:
        require("halter" not in asked, "halter_from brings its own settings; drop halter")
        card = card_of(asked["halter_from"])
        brought["halter"] = asdict(card.halter)
        brought["method"] = _brought_choice("method", card.method, "halter_from", asked)
    return brought


def _brought_choice(
    section: str, brought: Choice, origin: str, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The choice that weights bring, beside which no other may stand.

    A class of your own must be named again: a file that weights name is never executed.
    """
    given = asked.get(section)
    if not plugins.is_file(brought.name):
        if section == "rule" and given is not None and given.get("name") == brought.name:
            changed = given.get("settings", {})  # those of a size fit no weights, and are refused
            return {"name": brought.name, "settings": {**brought.settings, **changed}}
        require(given is None, f"{origin} brings its own settings; drop {section}")
        return asdict(brought)
    label = plugins.label(brought.name)
    require(
        given is not None and plugins.label(given.get("name", "")) == label,
        f"{section} {label} of {asked[origin]} is a class from a file, which is executed only "
        f"where you name it; add {section} = {brought.name}",
    )
    assert given is not None
    require(not given.get("settings"), f"{origin} brings its own settings; drop those of {section}")
    return {"name": given["name"], "settings": dict(brought.settings)}


def begin_from(
    model: Model, rule_from: str | None, halter_from: str | None, own: Iterable[type]
) -> None:
    """Give a new model, made by `brought_settings`, the weights of a trained rule or halter.

    Raises:
        InputError: There are no such weights, or they are of other settings.
    """
    if rule_from is not None:
        require(
            isinstance(model, OptimizerModel),
            "rule_from names an update rule, but this model has none; drop it",
        )
        assert isinstance(model, OptimizerModel)
        _copy_weights(load(rule_from, own).rule, model.rule, f"the rule of {rule_from}")
    if halter_from is not None:
        trained, new = load_halting(halter_from, own).halter, halting_of(model).halter
        _copy_weights(trained, new, f"the halter of {halter_from}")


def _copy_weights(trained: object, new: object, what: str) -> None:
    """Copy the weights of one module into another; a hand-designed rule has none."""
    weights, like = (
        part.state_dict() if isinstance(part, torch.nn.Module) else {} for part in (trained, new)
    )
    require(
        weights.keys() == like.keys()
        and all(weights[name].shape == value.shape for name, value in like.items()),
        f"{what} has other settings than this run's; drop either",
    )
    if isinstance(new, torch.nn.Module):
        new.load_state_dict(weights)
