"""Families of related problems. A new family is one new file that defines `FAMILIES`."""

import sys
from collections.abc import Mapping

from haltwise import _discovery
from haltwise.tasks.base import Evaluation, Observation, Score, TaskBatch, TaskFamily

__all__ = [
    "Evaluation",
    "Observation",
    "Score",
    "TaskBatch",
    "TaskFamily",
    "families",
    "family",
]


def families() -> Mapping[str, TaskFamily]:
    """Every named family: the table that the command line lists and the generic tests walk."""
    return _discovery.collect(sys.modules[__name__], "FAMILIES")


def family(name: str) -> TaskFamily:
    """The family called `name`.

    Raises:
        InputError: There is none; near names are suggested.

    Examples:
        >>> family("quadratic-10d").dim
        10
    """
    found: TaskFamily = _discovery.lookup(families(), name, "family")
    return found
