"""Families of related problems: one file each, which defines the table `FAMILIES`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haltwise._core import discovery as _discovery
from haltwise._core.plugins import is_file as _is_file
from haltwise.tasks.base import DifferentiatedScore, Observation, Score, TaskBatch, TaskFamily
from haltwise.tasks.trial import require_usable as _require_usable

__all__ = [
    "DifferentiatedScore",
    "Observation",
    "Score",
    "TaskBatch",
    "TaskFamily",
    "families",
    "family",
    "training_defaults",
]


def families() -> Mapping[str, TaskFamily]:
    """List every named family: the table that the command line shows and the tests walk."""
    return _discovery.collect(sys.modules[__name__], "FAMILIES")


def family(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    data_dir: Path | str | None = None,
) -> TaskFamily:
    """Make the family called `name`.

    Args:
        name: A name in `families`, or PATH.py:NAME for one of your own; only then is a file
            executed, and the family tried on two problems.
        settings: Fields that differ from those of the named family.
        data_dir: Directory of the data files of families that read any, for instance the one that
            holds `mnist/`. It is no setting, so it is on no card. By default see
            `haltwise.datasets.load`.

    Raises:
        InputError: There is no such family or setting (near names are suggested), or the file
            defines no family that works.

    Examples:
        >>> family("quadratic-10d").dim
        10
        >>> family("quadratic-10d", {"num_params": 3}).dim
        3
    """
    found = _discovery.find(families(), name, TaskFamily, "family")
    made: TaskFamily = _discovery.configure(found, settings or {}, name)
    bound = made if data_dir is None else made.with_data_dir(data_dir)
    if _is_file(name):
        _require_usable(bound, name)
    return bound


def training_defaults() -> Mapping[str, Mapping[str, Any]]:
    """Training settings by family that differ from the general ones, as nested objects."""
    return _discovery.collect(sys.modules[__name__], "TRAINING_DEFAULTS")
