"""Tables that grow by adding a file: no registry to edit, no import-time side effect."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from haltwise._core.errors import InputError

__all__ = ["collect", "find", "lookup", "unknown"]


def collect(package: ModuleType, attribute: str) -> Mapping[str, Any]:
    """Merge the mapping `attribute` of every module of `package`, in the order of module names.

    Args:
        package: A package; each of its modules may define the mapping.
        attribute: The mapping's name, for instance `"FAMILIES"`.

    Returns:
        One read-only mapping from name to entry.

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


def lookup(table: Mapping[str, Any], name: str, kind: str, hint: str = "") -> Any:
    """`table[name]`, or an `InputError` that suggests the near names.

    Args:
        table: From name to entry.
        name: What the user asked for.
        kind: What the entries are, for the message: `"family"`.
        hint: A further way out, appended to the message.
    """
    if name in table:
        return table[name]
    raise InputError(unknown(name, table, kind) + (f" {hint}" if hint else ""))


def find(table: Mapping[str, Any], name: str, kind: str, own: Iterable[type] = ()) -> Any:
    """`table[name]`, or a class that the caller brings for a name PATH.py:NAME.

    Code that a file of weights names is never executed, so whoever uses weights that were trained
    with a class of their own hands that class over.

    Args:
        table: From name to entry.
        name: A name in the table, or PATH.py:NAME.
        kind: What the entries are, for the message.
        own: Classes of the caller's, taken by their `__name__`.

    Raises:
        InputError: There is none; near names are suggested.
    """
    wanted = name.rpartition(":")[2]
    for brought in own:
        if brought.__name__ == wanted:
            return brought
    if name not in table and ":" in name:
        raise InputError(
            f"these weights were trained with the {kind} {name}; import its class and give it, as "
            f"in haltwise.load(..., own=[{wanted}])"
        )
    return lookup(table, name, kind)


def unknown(name: str, names: Iterable[str], kind: str) -> str:
    """The sentence that says `name` is not among `names` and which come near."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
    return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
