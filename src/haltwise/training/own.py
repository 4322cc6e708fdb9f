"""Classes of one's own, given as PATH.py:NAME: halting methods, update rules, estimators."""

from collections.abc import Iterable, Mapping
from typing import Any

from haltwise._core import plugins
from haltwise._core.discovery import find
from haltwise._core.errors import InputError
from haltwise._core.nested_settings import Choice
from haltwise._core.settings import require_types
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
    kind = find(table, choice.name, what, own)
    require_types(kind.__init__, choice.settings)
    try:
        return kind(**choice.settings)
    except TypeError as error:
        raise InputError(
            f"{what} {choice.name!r} does not take the settings {dict(choice.settings)}: {error}"
        ) from None
