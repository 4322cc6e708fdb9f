"""Families of related problems. A new family is one new file that defines `FAMILIES`."""

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from haltwise._core import discovery as _discovery
from haltwise._core.errors import require
from haltwise._core.settings import require_types
from haltwise.tasks.base import Evaluation, Observation, Score, TaskBatch, TaskFamily
from haltwise.tasks.files import family_from_file, is_file, label, resolve, whereabouts

__all__ = [
    "Evaluation",
    "Observation",
    "Score",
    "TaskBatch",
    "TaskFamily",
    "families",
    "family",
    "label",
    "resolve",
    "training_defaults",
    "whereabouts",
]


def families() -> Mapping[str, TaskFamily]:
    """Every named family: the table that the command line lists and the generic tests walk."""
    return _discovery.collect(sys.modules[__name__], "FAMILIES")


def family(name: str, settings: Mapping[str, Any] | None = None) -> TaskFamily:
    """The family called `name`, some of its settings replaced.

    Args:
        name: In `families`, or PATH.py:NAME for one of your own; only then is the file executed.
        settings: Those that are to differ.

    Raises:
        InputError: There is none, or no such setting, and near names are suggested; or the file
            does not run.

    Examples:
        >>> family("quadratic-10d").dim
        10
    """
    if is_file(name):
        return family_from_file(name, settings)
    own = "" if not name.endswith(".py") else f"To use a file, name the family in it: {name}:NAME."
    found: TaskFamily = _discovery.lookup(families(), name, "family", own)
    known = [field.name for field in fields(found)]
    for setting in settings or {}:
        require(setting in known, _discovery.unknown(setting, known, f"setting of {name}"))
    require_types(type(found).__init__, settings or {})
    return replace(found, **settings) if settings else found


def training_defaults() -> Mapping[str, Mapping[str, Any]]:
    """Training settings by family that differ from the general ones, as nested objects."""
    return _discovery.collect(sys.modules[__name__], "TRAINING_DEFAULTS")
