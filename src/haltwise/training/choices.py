"""What the choices among the settings may name: tables, and classes from files of your own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple, final

import numpy as np
from torch import nn

from haltwise._core import discovery, plugins
from haltwise._core.errors import require
from haltwise._core.nested_settings import Leaf, leaves
from haltwise.engines.named import own_kinds
from haltwise.halting.methods import HaltingMethod, halting_methods
from haltwise.processes import process_families
from haltwise.tasks import families
from haltwise.training.gradients import GradientEstimator, estimators
from haltwise.training.settings import TrainingSettings
from haltwise.update_rules import UpdateRule, rules

__all__ = ["CHOICES", "Named", "own_classes", "own_files", "plain", "settings_of"]


@final
class Named(NamedTuple):
    """What a choice may name: a noun for messages, the base of a class of your own, and a table.

    The table is from every name to a class, or to an instance whose values are the defaults.
    """

    noun: str
    kind: type
    table: Callable[[], Mapping[str, Any]]

    def find(self, name: str) -> Any:
        """Look up a name; PATH.py:NAME is executed."""
        return discovery.find(self.table(), name, self.kind, self.noun)


def _families() -> Mapping[str, Any]:
    """Families of problems and of processes."""
    return {**families(), **process_families()}


def _rules() -> Mapping[str, Any]:
    """Update rules, and engines of `haltwise.solve` that are none."""
    return {**own_kinds(), **rules()}


CHOICES: Mapping[str, Named] = MappingProxyType(
    {
        "family": Named("family", object, _families),
        "rule": Named("update rule", UpdateRule, _rules),
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
    if (path, name) != ("rule", "none"):
        yield from leaves(CHOICES[path].find(name), f"{path}.")


def own_classes(settings: TrainingSettings) -> list[type]:
    """Load the classes that a model's card names by PATH.py:NAME; their files are executed.

    Raises:
        InputError: A file does not run, or what it defines is of another kind.
    """
    chosen = {"rule": settings.rule.name, "method": settings.method.name}
    return [CHOICES[path].find(name) for path, name in chosen.items() if plugins.is_file(name)]


def own_files(settings: TrainingSettings) -> dict[str, str]:
    """The files of your own that settings name, and a checksum of what each holds."""
    chosen = settings.family, settings.rule, settings.method, settings.joint.estimator
    names = (*(choice.name for choice in chosen), *settings.mixed_with)
    files = {plugins.file_of(name) for name in names if plugins.is_file(name)}
    return {str(path): blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in files}


def plain(path: str, value: Any) -> Any:
    """Replace what choices name, where they are given as instances, by names and settings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and path not in CHOICES:  # a section
        return {name: plain(f"{path}.{name}", each) for name, each in value.items()}
    kind = plugins.class_of(value)
    is_learned = issubclass(kind, UpdateRule) and issubclass(kind, nn.Module)
    is_object = is_dataclass(value) and not isinstance(value, type)
    if path not in CHOICES or not issubclass(kind, CHOICES[path].kind):
        return value
    if not (is_learned or is_object):
        return value
    names = {entry: name for name, entry in CHOICES[path].table().items()}
    name = names.get(kind) or plugins.whereabouts(kind)
    require(
        not is_learned,
        f"{path} begins with new weights, so give the name of its class, {name!r}, or as "
        f"{{'name': {name!r}, 'settings': {{...}}}} with its settings; got {kind.__name__}",
    )
    return {"name": name, "settings": asdict(value)}
