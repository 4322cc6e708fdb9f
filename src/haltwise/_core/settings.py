"""Types of settings from JSON, checked against the annotations of what takes them."""

import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, SupportsFloat, Union, get_args, get_origin, get_type_hints

import numpy as np

from haltwise._core.errors import InputError, require

__all__ = [
    "alternatives",
    "fits",
    "got",
    "one_of",
    "parameters",
    "real_number",
    "require_at_least",
    "require_flags",
    "require_positive",
    "require_types",
    "shown",
    "whole_number",
    "words",
]

_LARGEST = 2**63 - 1
_HIGHEST = 3.4e38
_UNIONS = (Union, types.UnionType)
_WORDS: Mapping[Any, str] = {
    bool: "true|false",
    type(None): "none",
    Mapping[str, Any]: "an object of settings by name",
}


def require_types(
    function: Callable[..., Any], settings: Mapping[str, Any], path: str = ""
) -> None:
    """Check that settings have the types that `function` is annotated with.

    An integer is accepted as a float. Names that `function` does not have are ignored. Messages
    begin with `path`.

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
        hint = hints.get(name, Any)
        require(fits(value, hint), f"{path}{name} must be {words(hint)}, got {shown(value)}")


def real_number(name: str, value: object) -> float:
    """Convert one real number of Python, NumPy or PyTorch, or whatever else is a float at need.

    It may be infinite or NaN.
    """
    require(
        not np.ma.is_masked(value),
        f"{name} is masked, so nothing was measured; leave it out, or give NaN if it failed",
    )
    try:
        plain = value.item() if hasattr(value, "item") else value
        if not isinstance(plain, bool) and isinstance(plain, SupportsFloat):
            return float(plain)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # several, or too many digits
        pass
    raise InputError(f"{name} must be a single real number, got {shown(value)}")


def price_per_unit(value: object, name: str = "price") -> float:
    """Convert a price of a unit of cost, in units of the loss; free steps would never end.

    Raises:
        InputError: It is not a finite number above 0.
    """
    price = real_number(name, value)
    require(0 < price < math.inf, f"{name} must be a finite number above 0, got {price:g}")
    require(
        price <= _HIGHEST,
        f"{name} must be at most {_HIGHEST:g}, the largest number in single precision, got "
        f"{price:g}; divide losses and price by the same number",
    )
    return price


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Convert a whole number of at least `least`, also one that is a float, as 1e3."""
    found = real_number(name, value)
    if not found.is_integer():
        raise InputError(f"{name} must be a whole number, got {shown(value)}")
    require(found >= least, f"{name} must be at least {least}, got {shown(value)}")
    require(found <= _LARGEST, f"{name} must be at most {_LARGEST}, got {shown(value)}")
    return int(found)


def require_flags(**flags: object) -> None:
    """Refuse what is not true or false of Python or NumPy, even if it counts as true in Python."""
    for name, value in flags.items():
        is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"
        require(
            is_bool and not getattr(value, "shape", ()),
            f"{name} must be True or False, got {shown(value)}",
        )


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse what is none of some words."""
    listed = " or ".join(map(repr, known))
    require(
        isinstance(value, str) and value in known, f"{name} must be {listed}, got {shown(value)}"
    )


def shown(value: object) -> str:
    """A value for a message: shortened, and the shape of what is many numbers."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:  # a class of NumPy has a descriptor of that name
        return f"shape {list(shape)}"
    try:
        text = repr(value)
    except ValueError:  # Python prints no integers of more than 4300 digits
        text = "an integer of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}..."


def got(value: object) -> str:
    """What came where something else was expected, for the end of a message.

    Examples:
        >>> got(3)
        'got 3'
        >>> got(dict)
        'got the class dict; make one of it, as in dict(...)'
    """
    if isinstance(value, type):
        name = value.__name__
        return f"got the class {name}; make one of it, as in {name}(...)"
    return f"got {shown(value)}"


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


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type, and finite if it is a number."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return value in inner
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | hint):
            return False
        return abs(value) <= _LARGEST if isinstance(value, int) else math.isfinite(value)
    if origin is list and isinstance(value, list):
        return all(fits(element, inner[0]) for element in value)
    return hint is Any or isinstance(value, origin or hint)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The annotations among which one leaves the choice."""
    return get_args(hint) if get_origin(hint) in _UNIONS else (hint,)


def words(hint: Any) -> str:
    """An annotation as people read it, for instance `int|none`."""
    parts = get_args(hint) if get_origin(hint) is Literal else alternatives(hint)
    return (
        "|".join(
            _WORDS.get(part) or (part.__name__ if isinstance(part, type) else str(part))
            for part in parts
        )
        .replace("typing.", "")
        .replace("collections.abc.", "")
    )


def parameters(kind: type[Any]) -> dict[str, inspect.Parameter]:
    """What a class is made of, by name, `*args` and `**kwargs` aside."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in variable
    }
