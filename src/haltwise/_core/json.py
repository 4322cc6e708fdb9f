"""Records, which are frozen dataclasses, as JSON values and back."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from haltwise._core.errors import InputError

__all__ = ["from_json", "to_json"]

Record = TypeVar("Record")


def to_json(value: Any) -> Any:
    """The JSON value of a record; numbers that are not finite, which JSON lacks, become null.

    Args:
        value: A dataclass of numbers, strings, enumerations and other dataclasses, alone, in lists
            or in dictionaries.
    """
    if is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(to_json(key)): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(kind: type[Record], document: Any) -> Record:
    """The record of class `kind` that `to_json` wrote; null becomes NaN where a number is due.

    Raises:
        InputError: It is no such record: a value is missing, unknown or of another type.
    """
    try:
        found: Record = _read(kind, document)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"this is no {kind.__name__} of this version ({error}); write it again"
        ) from None
    return found


def _read(hint: Any, value: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    found, kinds = value, hint
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        known = {name: _read(hints[name], entry) for name, entry in value.items()}
        found = hint(**known)  # type: ignore[operator]
    elif origin is dict:
        kinds = dict
        found = {_read(inner[0], key): _read(inner[1], entry) for key, entry in value.items()}
    elif origin is list:
        kinds = list
        found = [_read(inner[0], entry) for entry in value]
    elif origin is tuple:
        kinds = tuple
        found = tuple(_read(each, entry) for each, entry in zip(inner, value, strict=True))
    elif NoneType in inner:
        kinds = object
        found = None if value is None else _read(inner[0], value)
    elif hint is float:
        kinds = (int, float)
        found = math.nan if value is None else value
    elif hint is not Any and issubclass(hint, Enum):
        found = hint(value)
    if hint is Any or (isinstance(found, kinds) and (hint is bool or not isinstance(found, bool))):
        return found
    raise TypeError(f"{value!r} where {hint} is due")
