"""Nested settings: frozen dataclasses within dataclasses, from JSON, merged, and listed with help.

A field's docstring, the string literal behind it, is its help on the command line, so that a
setting is described in one place.
"""

import ast
import contextlib
import difflib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, final, get_type_hints

from haltwise._core.discovery import unknown
from haltwise._core.errors import InputError, require
from haltwise._core.plugins import class_of
from haltwise._core.settings import alternatives, got, parameters, require_types

__all__ = ["Choice", "Leaf", "build", "checked", "leaves", "merge"]

Settings = TypeVar("Settings")


@final
@dataclass(frozen=True)
class Choice:
    """A named thing of a table, and those of its settings that differ from its own."""

    name: str
    """A name in the table, or PATH.py:NAME for one of your own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings by name, plain JSON values."""

    def __post_init__(self) -> None:
        require_types(Choice.__init__, vars(self))
        object.__setattr__(self, "settings", dict(self.settings))


@final
@dataclass(frozen=True)
class Leaf:
    """One setting of a tree."""

    path: str
    """Dotted, for instance `joint.batch_size`."""
    hint: Any
    """Its annotation."""
    default: Any
    """None where it is required."""
    help: str
    required: bool = False


def build(kind: type[Settings], document: Mapping[str, Any]) -> Settings:
    """Make the dataclass `kind` of a JSON object, nested ones of nested objects; see `checked`.

    Missing fields take their defaults, and a `Choice` with settings alone its default name.

    Raises:
        InputError: A name is unknown (near ones are suggested), or a value is impossible.
    """
    return _make(kind, checked(kind, document), "")


def checked(kind: type[Any], document: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Check the names and types of nested settings, in which nothing is filled in.

    Args:
        kind: The dataclass of the settings.
        document: Values by field name. A section is an object or an instance of its class, a
            `Choice` an object with a name, settings or both, an instance, or its name alone.
        path: Where the document lies within the whole, for messages.

    Returns:
        The document with an object for every section and every choice, ready to be merged.

    Raises:
        InputError: A name is unknown (near ones are suggested), or a value is of another type.

    Examples:
        >>> checked(Leaf, {"path": "rule", "halp": ""})
        Traceback (most recent call last):
        haltwise._core.errors.InputError: unknown setting 'halp'; did you mean 'help'?
    """
    require(
        isinstance(document, Mapping),
        f"{path.rstrip('.') or 'the settings'} must be an object of settings by name, "
        f"{got(document)}",
    )
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in document.items():
        if name not in hints:
            raise InputError(_unknown(kind, f"{path}{name}", path))
        section = _section(hints[name])
        if section is None or value is None:
            require_types(kind.__init__, {name: value}, path)
            found[name] = value
        elif section is Choice and isinstance(value, str):
            found[name] = {"name": value}
        else:
            given = asdict(value) if isinstance(value, section) else value
            found[name] = checked(section, given, f"{path}{name}.")
    return found


def _unknown(kind: type[Any], whole: str, path: str) -> str:
    """The sentence that a setting is unknown; those near may lie deeper in the tree."""
    if kind is Choice:
        return (
            f"unknown setting '{whole}'; the settings of what {path[:-1]} names belong into "
            f"'{path}settings'"
        )
    siblings = [f"{path}{item.name}" for item in fields(kind)]
    known = [*siblings, *(leaf.path for leaf in leaves(kind, path))]
    near = difflib.get_close_matches(whole, known, n=1, cutoff=0.4)
    return unknown(whole, dict.fromkeys(known if near else siblings), "setting")


def _make(kind: type[Settings], document: Mapping[str, Any], path: str) -> Settings:
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for item in fields(kind):  # type: ignore[arg-type]
        default, section = _default(item), _section(hints[item.name])
        if item.name not in document:
            require(default is not MISSING, f"{path}{item.name} is missing")
            continue
        value = document[item.name]
        if section is not None and value is not None:
            if isinstance(default, Choice) and "name" not in value:
                value = merge(asdict(default), value)
            value = _make(section, value, f"{path}{item.name}.")
        given[item.name] = value
    try:
        return kind(**given)
    except InputError as error:  # about one of them, which is named by its whole path
        about = str(error).partition(" ")[0] in given
        raise InputError(f"{path if about else ''}{error}") from None


def _section(hint: Any) -> type[Any] | None:
    """The dataclass that a hint names, alone or beside None."""
    for part in alternatives(hint):
        if isinstance(part, type) and is_dataclass(part):
            return part
    return None


def _default(item: Field[Any]) -> Any:
    """The default of a field, or MISSING."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def merge(*documents: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested objects over each other, the later ones on top.

    An object with a `name` (a `Choice`) replaces the one below as a whole, settings included; one
    without adds to its settings.

    Examples:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
        {'a': {'b': 1, 'c': 3}}
        >>> merge({"a": {"name": "x", "settings": {"b": 1}}}, {"a": {"name": "y"}})
        {'a': {'name': 'y'}}
    """
    merged: dict[str, Any] = {}
    for document in documents:
        for name, value in document.items():
            below: Any = merged.get(name)
            nested = isinstance(value, Mapping) and isinstance(below, Mapping)
            if nested and (name == "settings" or "name" not in value):
                merged[name] = merge(below, value)
            else:
                merged[name] = value
    return merged


def leaves(found: Any, path: str = "") -> Iterator[Leaf]:
    """List every setting of a class or an instance, in order, those of sections below it, too.

    A `Choice` counts as one setting; a `generator` is none.

    Args:
        found: A class, whose constructor takes the settings, or an instance of a dataclass, whose
            values are the defaults.
        path: Where they lie, for instance `rule.`.
    """
    kind = class_of(found)
    hints, helps = get_type_hints(kind.__init__), _helps(kind)
    defaults = {} if found is kind else dict(vars(found))
    if is_dataclass(kind):
        defaults = {item.name: _default(item) for item in fields(kind)} | defaults
    for name, parameter in parameters(kind).items():
        whole, hint = f"{path}{name}", hints.get(name, str)
        section = _section(hint)
        if section is not None and section is not Choice:
            yield from leaves(section, f"{whole}.")
        elif name != "generator":
            default = defaults.get(name, parameter.default)
            required = default is MISSING or default is parameter.empty
            yield Leaf(whole, hint, None if required else default, helps.get(name, ""), required)


def _helps(kind: type[Any]) -> dict[str, str]:
    """What describes each setting of a class, on one line.

    That is the docstring of a dataclass' field, its base classes' included, or else the entry in
    the section `Args:` of the class' docstring; nothing where there is no source.
    """
    _, _, section = (inspect.getdoc(kind) or "").partition("Args:\n")
    entries = re.split(r"\n(?=    \w+: )", "\n" + section.partition("\n\n")[0])
    found = {name.strip(): text for name, _, text in (e.partition(": ") for e in entries)}
    for base in filter(is_dataclass, reversed(kind.__mro__)):
        with contextlib.suppress(OSError, TypeError):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(body, ast.ClassDef)
            for item, text in itertools.pairwise(body.body):
                match item, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(words))),
                    ):
                        found[name] = words
    return {name: " ".join(text.split()) for name, text in found.items()}
