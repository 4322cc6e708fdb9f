"""Tables that grow by adding a file: no registry to edit, no import-time side effect."""

import contextlib
import difflib
import importlib
import pkgutil
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from types import MappingProxyType, ModuleType
from typing import Any

from haltwise._core import plugins
from haltwise._core.errors import InputError, require
from haltwise._core.settings import parameters, require_types

__all__ = ["collect", "configure", "find", "find_known", "lookup", "unknown"]


def collect(package: ModuleType, attribute: str) -> Mapping[str, Any]:
    """Merge the mapping `attribute` of every module of `package`, in the order of module names.

    Args:
        package: A package; each of its modules may define the mapping.
        attribute: The mapping's name, for instance `"FAMILIES"`.

    Raises:
        RuntimeError: Two modules define the same name.
    """
    table: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, entry in getattr(module, attribute, {}).items():
            if name in table:
                raise RuntimeError(f"{attribute} has two entries named {name!r}")
            table[name] = entry
    return MappingProxyType(table)


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """Look up `name`, or raise an `InputError` that suggests near names.

    Args:
        table: From name to entry.
        name: What the user asked for.
        what: A noun for an entry in messages, for instance "preset".
    """
    if name in table:
        return table[name]
    raise InputError(unknown(name, table, what))


def find(table: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    """Look up a class or an instance in a table, or take it from a user's file.

    Args:
        table: From name to entry.
        name: A name in the table, or PATH.py:NAME; only then is a file executed.
        kind: What an entry is a subclass or an instance of.
        what: A noun for an entry in messages.

    Raises:
        InputError: The name is unknown (near names are suggested), or the file does not define an
            object of this kind.
    """
    if plugins.is_file(name):
        return plugins.load_object(name, kind, what)
    if name not in table and name.endswith(".py"):
        raise InputError(f"{name} does not say which {what} of the file to use; name {name}:NAME")
    return lookup(table, name, what)


def find_known(table: Mapping[str, Any], name: str, what: str, own: Iterable[type] = ()) -> Any:
    """Look up a name on a card: in a table, or among classes that the caller hands over.

    Code that a file of weights names is never executed, so whoever uses weights that were trained
    with a class of their own brings that class, which is known by its `__name__`.

    Raises:
        InputError: There is none; near names are suggested.
    """
    wanted, is_file = plugins.label(name), plugins.is_file(name)
    named = [
        brought
        for brought in own
        # One that is shipped is not the class of a file, whatever it is called.
        if brought.__name__ == wanted and not (is_file and plugins.is_shipped(brought))
    ]
    if len(named) > 1:  # files move, so theirs counts only where names leave it open
        named = [brought for brought in named if plugins.is_from(brought, name)] or named
        require(
            len(named) == 1,
            f"{len(named)} classes called {wanted} were brought, and none or several of them from "
            f"{name}; give the {what} that these weights were trained with alone",
        )
    if named:
        return named[0]
    if is_file:
        raise InputError(
            f"these weights were trained with the {what} {name}; import its class and give it, as "
            f"in haltwise.load(..., own=[{wanted}]), or give a command --own {shlex.quote(name)}"
        )
    return lookup(table, name, what)


def configure(entry: Any, settings: Mapping[str, Any], name: str, **others: Any) -> Any:
    """Make an instance with `settings`, which are checked against the annotations.

    Args:
        entry: What `find` gave: a class, which is called with the settings, or an instance of a
            dataclass, of which a copy with these settings is made.
        settings: Values by name, from JSON.
        name: What `find` was asked for.
        others: Further arguments for a class, which are no settings: a generator, for instance.

    Raises:
        InputError: A setting is unknown (near names are suggested), missing, impossible or of
            another type, or a class from a user's file raises an exception.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Descent:
        ...     learning_rate: float
        >>> configure(Descent, {"learning_rate": 0.1}, "descent")
        Descent(learning_rate=0.1)
    """
    is_class = isinstance(entry, type)
    maker = plugins.class_of(entry)
    title = plugins.label(name)
    require(
        is_class or is_dataclass(entry) or not settings,
        f"{title} is an instance of a class that is no dataclass, so it takes no settings; name "
        "its class",
    )
    known = {key: value for key, value in parameters(maker).items() if key not in others}
    for setting in settings:
        require(bool(known), f"{title} takes no settings, got {setting!r}")
        require(setting in known, unknown(setting, known, f"setting of {title}"))
    require_types(maker.__init__, settings)
    for key, parameter in known.items():
        required = is_class and parameter.default is parameter.empty
        require(not required or key in settings, f"{title} needs the setting {key}")
    in_file = plugins.is_file(name)
    with plugins.place(name, maker).errors() if in_file else contextlib.nullcontext():
        if is_class:
            return entry(**settings, **others)
        return replace(entry, **settings) if settings else entry


_LISTED: Mapping[str, str] = MappingProxyType(
    {
        "family": "haltwise list",
        "optimizer": "haltwise list",
        "setting": "haltwise train --help",
    }
)
"""Commands that show what there is, by the noun for it."""
_MOST = 16  # names that a sentence may hold


def unknown(name: str, names: Iterable[str], what: str) -> str:
    """Word the message that `name` is not among `names`: with the near ones, three at most.

    Where none is near, it says which command shows all, or names them where there is no such.

    Examples:
        >>> unknown("adma", ["adam", "lstm", "sgd"], "update rule")
        "unknown update rule 'adma'; did you mean 'adam'?"
        >>> unknown("zzz", ["adam", "lstm", "sgd"], "update rule")
        "unknown update rule 'zzz'; there are 'adam', 'lstm' and 'sgd'."
        >>> unknown("zzz", ["regression-2d"], "family")
        "unknown family 'zzz'; `haltwise list` shows which there are."
    """
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    if what in _LISTED:
        return f"unknown {what} {name!r}; `{_LISTED[what]}` shows which there are."
    *first, last = map(repr, names[:_MOST])
    those = f"{', '.join(first)} and {last}" if first else last
    more = f", and {len(names) - _MOST} others" if len(names) > _MOST else ""
    return f"unknown {what} {name!r}; there {'are' if first else 'is'} {those}{more}."
