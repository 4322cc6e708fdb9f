"""A checksum of an object, by which it is known again in another process."""

import hashlib
import inspect
from collections.abc import Iterator
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haltwise._core.errors import InputError

__all__ = ["checksum"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def checksum(value: object) -> str:
    """A checksum of all that an object holds, by value: of equal ones it is the same.

    Unlike that of a pickle it depends neither on the order of a dictionary nor on which of two
    equal objects are one.

    Args:
        value: Numbers, arrays, tensors, containers, functions, and whatever else can be copied by
            `copy`. Of classes only the names count, not what their methods do.

    Raises:
        InputError: It holds something that cannot be taken apart, such as an open file.

    Examples:
        >>> checksum({"a": 1, "b": [2.0]}) == checksum({"b": [2.0], "a": 1})
        True
        >>> checksum([0.1]) == checksum([0.2])
        False
    """
    found = hashlib.blake2b(digest_size=16)
    for piece in _pieces(value, ()):
        found.update(len(piece).to_bytes(8, "little") + piece)
    return found.hexdigest()


def _pieces(value: Any, above: tuple[int, ...]) -> Iterator[bytes]:
    """What an object consists of; `above` are the identities of those that it is a part of."""
    kind = type(value)
    if id(value) in above:  # a cycle
        yield f"above {len(above) - above.index(id(value))}".encode()
        return
    above = *above, id(value)
    if kind in _PLAIN:
        yield repr(value).encode()
    elif isinstance(value, type):
        yield _name(value)
    elif isinstance(value, Tensor):
        yield repr((value.dtype, tuple(value.shape))).encode()
        dense = value.detach().resolve_conj().resolve_neg().cpu().flatten()
        yield dense.view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        yield repr((value.dtype.descr, value.shape)).encode()
        yield value.tobytes()
    elif kind in (list, tuple):
        yield f"{kind.__name__} of {len(value)}".encode()
        for each in value:
            yield from _pieces(each, above)
    elif kind in (dict, set, frozenset):
        entries = value.items() if kind is dict else value
        yield f"{kind.__name__} of {len(value)}".encode()
        yield from sorted(b"".join(_pieces(each, above)) for each in entries)
    else:
        yield _name(value if kind is FunctionType else kind)
        parts = _parts_of_function(value) if kind is FunctionType else _parts(value)
        yield from _pieces(parts, above)


def _parts_of_function(function: FunctionType) -> list[Any]:
    """What it does and what it knows; what it calls by name may change unseen."""
    known = inspect.getclosurevars(function).nonlocals
    return [
        _parts_of_code(function.__code__),
        known,
        function.__defaults__,
        function.__kwdefaults__,
    ]


def _parts_of_code(code: CodeType) -> list[Any]:
    inside = [_parts_of_code(each) for each in code.co_consts if isinstance(each, CodeType)]
    constants = [each for each in code.co_consts if not isinstance(each, CodeType)]
    return [code.co_code, code.co_names, constants, inside]


def _parts(value: Any) -> list[Any]:
    """What `copy` makes an object of."""
    try:
        made = value.__reduce_ex__(4)
    except Exception as error:
        raise InputError(
            f"a {type(value).__name__} cannot be taken apart ({error}), so that what holds it "
            "cannot be known again; hold numbers, arrays and functions in its place"
        ) from None
    if isinstance(made, str):
        return [made]
    return [
        list(part)
        if isinstance(part, Iterator)
        else {name: each for name, each in part.items() if not _is_cached(type(value), name)}
        if isinstance(part, dict)
        else part
        for part in made
    ]


def _is_cached(kind: type, name: object) -> bool:
    """Whether an attribute is only remembered, and would be computed again."""
    return isinstance(name, str) and isinstance(getattr(kind, name, None), cached_property)


def _name(value: Any) -> bytes:
    return f"{getattr(value, '__module__', '')}.{value.__qualname__}".encode()
