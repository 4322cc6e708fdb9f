"""Classes of one's own, given as PATH.py:NAME: halting methods, update rules, estimators."""

from collections.abc import Iterable, Mapping
from typing import Any

from haltwise._core import plugins
from haltwise._core.discovery import configure, find_known
from haltwise._core.nested_settings import Choice
from haltwise.halting.methods import HaltingMethod
from haltwise.training.gradients import GradientEstimator
from haltwise.training.settings import TrainingSettings
from haltwise.update_rules import UpdateRule

__all__ = ["make_own", "own_classes"]


def own_classes(settings: TrainingSettings) -> list[type]:
    """The classes that settings name by PATH.py:NAME; their files are executed.

    Raises:
        InputError: A file does not run, or what it defines is of another kind.
    """
    named: tuple[tuple[Choice, type, str], ...] = (
        (settings.rule, UpdateRule, "update rule"),
        (settings.method, HaltingMethod, "halting method"),
        (settings.joint.estimator, GradientEstimator, "gradient estimator"),
    )
    return [
        plugins.load_object(choice.name, kind, what)
        for choice, kind, what in named
        if plugins.is_file(choice.name)
    ]


def make_own(table: Mapping[str, Any], choice: Choice, what: str, own: Iterable[type] = ()) -> Any:
    """The thing that a choice names, in a table or among classes of one's own.

    Raises:
        InputError: There is none, or a setting is impossible.
    """
    return configure(find_known(table, choice.name, what, own), choice.settings, choice.name)
