"""The table of named rules, collected from the modules of this package."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from haltwise._core import discovery
from haltwise.update_rules.base import UpdateRule

__all__ = ["make", "rules"]


def rules() -> Mapping[str, type[UpdateRule]]:
    """Every named rule: the table that configurations refer to and the generic tests walk."""
    return discovery.collect(importlib.import_module("haltwise.update_rules"), "RULES")


def make(
    name: str,
    settings: Mapping[str, Any],
    generator: torch.Generator | None = None,
    own: Iterable[type] = (),
) -> UpdateRule:
    """Build a rule by its name.

    Args:
        name: A key of `rules()`, or PATH.py:NAME of a class that `own` brings.
        settings: Arguments of the rule's constructor.
        generator: Draws the weights of a learned rule.
        own: Classes of the caller's that the name may mean.

    Raises:
        InputError: The name or a setting is unknown, or a setting's value is not possible.

    Examples:
        >>> make("sgd", {"learning_rate": 0.1})
        SGD(learning_rate=0.1, momentum=0.0, nesterov=False)
    """
    kind: type[UpdateRule] = discovery.find_known(rules(), name, "update rule", own)
    learned = {"generator": generator} if issubclass(kind, nn.Module) else {}
    made: UpdateRule = discovery.configure(kind, settings, name, **learned)
    return made
