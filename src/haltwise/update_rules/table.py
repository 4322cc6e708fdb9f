"""The table of named rules, collected from the modules of this package."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from haltwise._core import discovery
from haltwise._core.errors import InputError
from haltwise._core.settings import require_types
from haltwise.update_rules.base import UpdateRule

__all__ = ["make", "rules"]


def rules() -> Mapping[str, type[UpdateRule]]:
    """Every named rule: the table that configurations refer to and the generic tests walk."""
    return discovery.collect(importlib.import_module("haltwise.update_rules"), "RULES")


def make(
    name: str, settings: dict[str, Any], generator: torch.Generator | None = None
) -> UpdateRule:
    """Build a rule by its name.

    Args:
        name: A key of `rules()`.
        settings: Arguments of the rule's constructor.
        generator: Draws the weights of a learned rule.

    Raises:
        InputError: The name or a setting is unknown, or a setting's value is not possible.

    Examples:
        >>> make("sgd", {"learning_rate": 0.1})
        SGD(learning_rate=0.1, momentum=0.0, nesterov=False)
    """
    rule: type[UpdateRule] = discovery.lookup(rules(), name, "rule")
    learned = {"generator": generator} if issubclass(rule, nn.Module) else {}
    require_types(rule.__init__, settings)
    try:
        return rule(**settings, **learned)
    except TypeError as error:
        raise InputError(
            f"rule {name!r} does not take the settings {settings}: {error}; see rule_settings"
        ) from None
