"""Records, which are frozen dataclasses, as JSON values and back."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum, EnumType
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from haltwise._core.errors import InputError
from haltwise._core.settings import fits

__all__ = ["from_json", "to_json"]

Record = TypeVar("Record")


def to_json(value: Any) -> Any:
    """Make the JSON value of a record: a dataclass, or lists and dictionaries of them.

    Enumerations become their values, and numbers that are not finite, which JSON lacks, null.
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
    """Make the record of class `kind` that `to_json` wrote; null is NaN where a number is due.

    Raises:
        InputError: It is no such record: a value is missing, unknown or of another type.
    """
    try:
        return _read(kind, document)  # type: ignore[no-any-return]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"this is no {kind.__name__} of this version ({error}); write it again"
        ) from None


def _read(hint: Any, value: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    found = value
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        known = {name: _read(hints[name], entry) for name, entry in value.items()}
        found = hint(**known)  # type: ignore[operator]
    elif origin is dict:
        found = {_read(inner[0], key): _read(inner[1], entry) for key, entry in value.items()}
    elif origin is list and isinstance(value, list):
        found = [_read(inner[0], entry) for entry in value]
    elif origin is tuple and isinstance(value, list):
        found = tuple(_read(each, entry) for each, entry in zip(inner, value, strict=True))
    elif NoneType in inner:
        found = None if value is None else _read(inner[0], value)
    elif isinstance(hint, EnumType):
        found = hint(value)
    elif hint is float and value is None:
        found = math.nan
    elif not fits(value, hint):
        raise TypeError(f"{value!r} where {hint} is due")
    return found
