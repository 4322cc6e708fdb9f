"""Values of settings as they are typed in a shell, by the annotation of the setting."""

import json
import types
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Union, final, get_args, get_origin

import click

__all__ = ["NONE", "SettingType"]

NONE = object()
"""A None that was typed, unlike that of an option that was left out."""

_WORDS: Mapping[Any, Mapping[str, Any]] = MappingProxyType(
    {bool: {"true": True, "false": False}, type(None): {"none": None}}
)


@final
class SettingType(click.ParamType[Any]):
    """The type of an option: "none" is None, lists have commas between or are JSON.

    Args:
        hint: Annotation of the setting.
    """

    def __init__(self, hint: Any) -> None:
        self._hint = hint
        self.name = _words(hint)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = _parse(value, self._hint)
        except ValueError:
            self.fail(f"{value!r} is not {_with_article(self.name)}", param, ctx)
        return NONE if found is None else found


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return "|".join(_words(part) for part in parts)
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin in (list, Sequence):
        return "list"
    names = {int: "integer", float: "number", str: "text", bool: "true|false", type(None): "none"}
    return names.get(hint, "value")


def _with_article(words: str) -> str:
    if "|" in words:
        return f"one of {words.replace('|', ', ')}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _parse(text: str, hint: Any) -> Any:
    """Parse a value of the annotated type.

    Raises:
        ValueError: The text is no such value.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_parses(text, parts)
    if origin in (list, Sequence):
        is_json = text.lstrip().startswith("[")
        return json.loads(text) if is_json else [_parse(part, parts[0]) for part in text.split(",")]
    words = {str(part): part for part in parts} if origin is Literal else _WORDS.get(hint)
    if words is not None:
        if text not in words:
            raise ValueError(text)
        return words[text]
    return hint(text) if hint in (int, float, str) else json.loads(text)


def _first_that_parses(text: str, hints: Sequence[Any]) -> Any:
    """By the first of the annotations; "none" is None even where any text will do."""
    for hint in sorted(hints, key=lambda hint: hint is not type(None)):
        try:
            return _parse(text, hint)
        except ValueError:
            continue
    raise ValueError(text)
