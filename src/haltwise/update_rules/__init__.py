"""Update rules. A new rule is one new file that defines `RULES`."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from haltwise._core import discovery as _discovery
from haltwise._core.plugins import label as _label
from haltwise.update_rules.base import Pooled, State, UpdateRule, UpdateStep, select_state
from haltwise.update_rules.hand_designed import SGD, Adam, RMSprop
from haltwise.update_rules.lstm import LSTMRule
from haltwise.update_rules.partitioned import PartitionedRule

__all__ = [
    "SGD",
    "Adam",
    "LSTMRule",
    "PartitionedRule",
    "Pooled",
    "RMSprop",
    "State",
    "UpdateRule",
    "UpdateStep",
    "make",
    "rules",
    "select_state",
]


def rules() -> Mapping[str, type[UpdateRule]]:
    """Every named rule: the table that configurations refer to and the generic tests walk."""
    return _discovery.collect(sys.modules[__name__], "RULES")


def make(
    name: str,
    settings: Mapping[str, Any],
    generator: torch.Generator | None = None,
    own: Iterable[type] = (),
) -> UpdateRule:
    """The rule called `name` with `settings`; `generator` draws the weights of a learned one.

    Raises:
        InputError: The name or a setting is unknown.
    """
    kind = _discovery.find(rules(), name, "update rule", own)
    learned = {"generator": generator} if issubclass(kind, nn.Module) else {}
    rule: UpdateRule = _discovery.configure(kind, settings, _label(name), **learned)
    return rule
