"""Nested settings: frozen dataclasses within dataclasses, from JSON, merged, and listed with help.

A field's docstring, the string literal behind it, is its help on the command line, so that a
setting is described in one place.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, final, get_type_hints

from haltwise._core.discovery import unknown
from haltwise._core.errors import InputError, require
from haltwise._core.settings import require_types

__all__ = ["Choice", "Leaf", "build", "field_help", "leaves", "merge"]

Settings = TypeVar("Settings")


@final
@dataclass(frozen=True)
class Choice:
    """A named thing of a table, and those of its settings that differ from its own."""

    name: str
    """A name in the table, or PATH.py:NAME for one of your own."""
    settings: Mapping[str, Any]
    """Settings by name, plain JSON values."""

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        require(isinstance(name, str), f"a name must be a string, got {name!r}")
        require(
            settings is None or isinstance(settings, Mapping),
            f"the settings of {name!r} must be a mapping from names to values, got {settings!r}",
        )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "settings", dict(settings or {}))


@final
@dataclass(frozen=True)
class Leaf:
    """One setting of a tree."""

    path: str
    """Dotted, for instance `joint.batch_size`."""
    hint: Any
    """Its annotation."""
    default: Any
    help: str


def build(kind: type[Settings], document: Mapping[str, Any], path: str = "") -> Settings:
    """The dataclass `kind` from a JSON object, nested ones from nested objects.

    Args:
        kind: A dataclass; missing fields take their defaults.
        document: By field name. A `Choice` may be given as its name alone.
        path: Of the object within the whole, for messages.

    Raises:
        InputError: A name is unknown (near ones are suggested), or a value is impossible.

    Examples:
        >>> build(Choice, {"name": "adam", "settings": {"learning_rate": 0.1}}).name
        'adam'
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in document.items():
        whole = f"{path}{name}"
        require(name in known, unknown(whole, [f"{path}{key}" for key in known], "setting"))
        given[name] = _value(hints[name], value, whole)
    if kind is not Choice:
        plain = {
            name: value
            for name, value in given.items()
            if not is_dataclass(value) and _inner(hints[name]) is None
        }
        try:
            require_types(kind.__init__, plain)
        except InputError as error:
            raise InputError(f"{path}{error}") from None
    missing = [
        field.name
        for field in fields(kind)  # type: ignore[arg-type]
        if field.default is MISSING
        and field.default_factory is MISSING
        and field.name not in given
        and kind is not Choice
    ]
    require(not missing, f"{path}{missing[0] if missing else ''} is missing")
    return kind(**given)


def _value(hint: Any, value: Any, path: str) -> Any:
    inner = _inner(hint)
    if inner is None or value is None or isinstance(value, inner):
        return value
    if inner is Choice and isinstance(value, str):
        return Choice(value)
    require(
        isinstance(value, Mapping), f"{path} must be an object of settings by name, got {value!r}"
    )
    return build(inner, value, f"{path}.")


def _inner(hint: Any) -> type[Any] | None:
    """The dataclass that a hint names, alone or beside None."""
    for part in getattr(hint, "__args__", None) or (hint,):
        if isinstance(part, type) and is_dataclass(part):
            return part
    return None


def merge(*documents: Mapping[str, Any]) -> dict[str, Any]:
    """Nested objects laid over each other, the later ones on top.

    An object with a `name` (a `Choice`) replaces the one below as a whole, settings included; one
    without adds to its settings.

    Examples:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
        {'a': {'b': 1, 'c': 3}}
    """
    merged: dict[str, Any] = {}
    for document in documents:
        for name, value in document.items():
            below = merged.get(name)
            is_choice = isinstance(below, Mapping) and "name" in below
            above = {"name": value} if is_choice and isinstance(value, str) else value
            if isinstance(above, Mapping) and isinstance(below, Mapping) and "name" not in above:
                merged[name] = merge(below, above)
            else:
                merged[name] = above
    return merged


def leaves(kind: type[Any], path: str = "") -> Iterator[Leaf]:
    """Every setting below a dataclass, in order; a `Choice` counts as one."""
    hints, helps = get_type_hints(kind), field_help(kind)
    for field in fields(kind):
        inner = _inner(hints[field.name])
        if inner is not None and inner is not Choice:
            yield from leaves(inner, f"{path}{field.name}.")
            continue
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        yield Leaf(f"{path}{field.name}", hints[field.name], default, helps.get(field.name, ""))


def field_help(kind: type[Any]) -> dict[str, str]:
    """The docstrings of a dataclass' fields, each on one line; none where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = " ".join(text.value.value.split())
    return found
