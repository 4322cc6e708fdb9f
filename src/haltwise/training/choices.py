"""The choices among the settings: the table of each, and classes from files of your own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

from haltwise._core import plugins
from haltwise._core.discovery import configure, find, find_known
from haltwise._core.nested_settings import Choice, Leaf, leaves
from haltwise.halting.methods import HaltingMethod, halting_methods
from haltwise.tasks import families
from haltwise.training.gradients import GradientEstimator, estimators
from haltwise.training.settings import TrainingSettings
from haltwise.update_rules import UpdateRule, rules

__all__ = ["CHOICES", "Named", "make_estimator", "own_classes", "settings_of"]


@final
@dataclass(frozen=True)
class Named:
    """What a choice may name."""

    noun: str
    """What it is, for messages."""
    kind: type
    """What a class of your own is a subclass of."""
    table: Callable[[], Mapping[str, Any]]
    """From every name to a class, or to an instance whose values are the defaults."""


CHOICES: Mapping[str, Named] = MappingProxyType(
    {
        "family": Named("family", object, families),  # of problems or of processes
        "rule": Named("update rule", UpdateRule, rules),
        "method": Named("halting method", HaltingMethod, halting_methods),
        "joint.estimator": Named("gradient estimator", GradientEstimator, estimators),
    }
)
"""By the path of the choice among the settings."""


def settings_of(path: str, name: str) -> Iterator[Leaf]:
    """List the settings of what the choice at `path` names; a file of your own is executed.

    Raises:
        InputError: There is no such name; near ones are suggested.
    """
    if (path, name) == ("rule", "none"):
        return
    named = CHOICES[path]
    yield from leaves(find(named.table(), name, named.kind, named.noun), f"{path}.")


def own_classes(settings: TrainingSettings) -> list[type]:
    """Load the classes that settings name by PATH.py:NAME; their files are executed.

    Raises:
        InputError: A file does not run, or what it defines is of another kind.
    """
    chosen = {
        "rule": settings.rule,
        "method": settings.method,
        "joint.estimator": settings.joint.estimator,
    }
    return [
        plugins.load_object(choice.name, CHOICES[path].kind, CHOICES[path].noun)
        for path, choice in chosen.items()
        if plugins.is_file(choice.name)
    ]


def make_estimator(choice: Choice, own: list[type]) -> GradientEstimator:
    """Make the gradient estimator of a choice.

    Raises:
        InputError: There is none, or a setting is impossible.
    """
    found = find_known(estimators(), choice.name, CHOICES["joint.estimator"].noun, own)
    made: GradientEstimator = configure(found, choice.settings, choice.name)
    return made
