"""Types of settings from JSON, checked against the annotations of what takes them."""

import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from haltwise._core.errors import require

__all__ = ["require_at_least", "require_positive", "require_types"]

_LARGEST = 2**63 - 1


def require_types(function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Check that settings have the types that `function` is annotated with.

    An integer is accepted as a float. Names that `function` does not have are ignored.

    Args:
        function: What takes the settings, for instance a constructor.
        settings: Values by name, from JSON.

    Raises:
        InputError: A setting is of another type, or a number is infinite, NaN or beyond 64 bits.

    Examples:
        >>> def train(horizon: int, price: float = 1.0): ...
        >>> require_types(train, {"horizon": 2.5})
        Traceback (most recent call last):
        haltwise._core.errors.InputError: horizon must be int, got 2.5
    """
    hints = get_type_hints(function)
    for name, value in settings.items():
        if name in hints:
            hint = hints[name]
            wanted = hint.__name__ if isinstance(hint, type) else str(hint)
            require(
                _fits(value, hint), f"{name} must be {wanted.replace('typing.', '')}, got {value!r}"
            )


def require_at_least(least: float, settings: object, *names: str) -> None:
    """Refuse settings below `least`, except None."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= least, f"{name} must be at least {least}, got {value}")


def require_positive(settings: object, *names: str) -> None:
    """Refuse settings that are not above 0, except None."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, f"{name} must be above 0, got {value}")


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        return _fits_number(value, hint)
    if origin is list and isinstance(value, list):
        return all(_fits(element, get_args(hint)[0]) for element in value)
    return isinstance(value, origin or hint)


def _fits_number(value: object, hint: type) -> bool:
    kinds = (int,) if hint is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return abs(value) <= _LARGEST if isinstance(value, int) else math.isfinite(value)
