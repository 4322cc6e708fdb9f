"""Parameters as a user has them, and the free coordinates [B, D] in which they are optimized."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import shown
from haltwise._core.tensors import copied_array, undisturbed
from haltwise.tasks.bounds import OpenInterval

__all__ = ["Bounds", "Coordinates", "no_dtype"]

Bounds: TypeAlias = OpenInterval | Mapping[Any, OpenInterval] | Sequence[OpenInterval | None]
"""For all parameters, for some by name or by column, or for each column, None for no bounds."""


class _Piece(NamedTuple):
    """Neighbouring coordinates with the same bounds, and how they are shown."""

    name: str | None
    shape: tuple[int, ...]
    bounds: OpenInterval | None

    @property
    def width(self) -> int:
        return math.prod(self.shape)


_DTYPES = (torch.float32, torch.float64)


@final
@dataclass(frozen=True, eq=False)
class Coordinates:
    """How D free coordinates stand for a user's parameters.

    Those are one tensor [B, D] or a dictionary of tensors [B, ...], and may have bounds. All that
    is optimized, as gradients, tolerances, `param_scale` and what is left to gain, is in free
    coordinates: they are the parameters themselves where those have no bounds, see
    `haltwise.tasks.bounds.OpenInterval` for the others.
    """

    pieces: tuple[_Piece, ...]
    as_arrays: bool
    """Whether the start came in NumPy arrays, so that results leave in them."""
    are_results: bool = False
    """Whether results are to be left in these coordinates, as tensors."""

    @classmethod
    @undisturbed()
    def of(cls, start: Any, bounds: Bounds | None) -> tuple[Any, Self | None]:
        """Find the free start [B, D], and its coordinates; None where it is a tensor without any.

        Raises:
            InputError: The start is of no such form, or not strictly within its bounds.
        """
        if isinstance(start, Mapping):
            values, as_arrays = _same_kind(start)
            limits = _by_name(bounds, tuple(values))
            pieces = [
                _Piece(name, tuple(value.shape[1:]), limits.get(name))
                for name, value in values.items()
            ]
            parts = [value.reshape(len(value), -1) for value in values.values()]
        else:
            as_arrays = isinstance(start, np.ndarray)
            own = copied_array(start, "start") if as_arrays else start
            if bounds is None:
                whole = _Piece(None, tuple(own.shape[1:]), None) if as_arrays else None
                return own, whole and cls((whole,), as_arrays)
            require(
                isinstance(own, Tensor) and own.ndim == 2,
                "start must be a tensor of shape [B, D] or a dictionary of tensors [B, ...], got "
                + (f"shape {list(own.shape)}" if isinstance(own, Tensor) else shown(own)),
            )
            require(own.dtype in _DTYPES, no_dtype("start", own, as_array=as_arrays))
            runs = itertools.groupby(_by_column(bounds, own.shape[1]))
            pieces = [_Piece(None, (len(list(run)),), limit) for limit, run in runs]
            parts = list(own.split([piece.width for piece in pieces], 1))
        free = [
            part if piece.bounds is None else _freed(piece, part)
            for piece, part in zip(pieces, parts, strict=True)
        ]
        return torch.cat(free, 1), cls(tuple(pieces), as_arrays)

    def own(self, free: Tensor) -> Any:
        """Convert free coordinates [B, D] to the user's parameters, as tensors."""
        return self._joined(
            [
                part if piece.bounds is None else piece.bounds.own(part)
                for piece, part in self._parts(free)
            ]
        )

    def slope(self, free: Tensor) -> Tensor:
        """Compute the derivative of each own parameter in its free coordinate, shape [B, D]."""
        slopes = [
            torch.ones_like(part) if piece.bounds is None else piece.bounds.slope(part)
            for piece, part in self._parts(free)
        ]
        return torch.cat(slopes, 1)

    def bend(self, free: Tensor) -> Tensor:
        """Compute the second derivative of each own parameter, as `slope`."""
        bends = [
            torch.zeros_like(part) if piece.bounds is None else piece.bounds.bend(part)
            for piece, part in self._parts(free)
        ]
        return torch.cat(bends, 1)

    @property
    def bounded(self) -> list[bool]:
        """Which coordinates have bounds, D of them."""
        return [piece.bounds is not None for piece in self.pieces for _ in range(piece.width)]

    def bounded_parts(self, values: Tensor) -> list[tuple[OpenInterval | None, Tensor]]:
        """Split values [B, D], one for each coordinate, where the bounds differ."""
        return [(piece.bounds, part) for piece, part in self._parts(values)]

    def shaped(self, values: Tensor) -> Any:
        """Give values [B, D], one for each parameter, the form of the start, as tensors."""
        return self._joined([part for _, part in self._parts(values)])

    def _joined(self, parts: Sequence[Tensor]) -> Any:
        if self.pieces[0].name is None:
            return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 1)
        return {
            piece.name: part.reshape(len(part), *piece.shape)
            for piece, part in zip(self.pieces, parts, strict=True)
        }

    def _parts(self, values: Tensor) -> list[tuple[_Piece, Tensor]]:
        widths = [piece.width for piece in self.pieces]
        return list(zip(self.pieces, values.split(widths, 1), strict=True))


def _same_kind(start: Mapping[Any, Any]) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a dictionary, and whether they came as arrays; all must be of one kind."""
    require(len(start) > 0, "start is an empty dictionary; name at least one parameter")
    names = [name for name in start if not isinstance(name, str)]
    require(not names, f"the parameters of start must be named by text, got {names[:1]}")
    arrays = [isinstance(value, np.ndarray) for value in start.values()]
    values = {
        name: copied_array(value, f"start[{name!r}]") if is_array else value
        for (name, value), is_array in zip(start.items(), arrays, strict=True)
    }
    for is_array, (name, value) in zip(arrays, values.items(), strict=True):
        require(
            isinstance(value, Tensor) and value.ndim > 0 and value.numel() > 0,
            f"start[{name!r}] must be a tensor of shape [B, ...], a row for each problem, got "
            + (f"shape {list(value.shape)}" if isinstance(value, Tensor) else shown(value)),
        )
        label = f"start[{name!r}]"
        require(value.dtype in _DTYPES, no_dtype(label, value, as_array=is_array))
    require(
        all(arrays) or not any(arrays),
        "start mixes NumPy arrays and tensors; give all of one kind, in which results come back",
    )
    first, *others = values.items()
    for name, value in others:
        for what, one, other in (
            ("problems", len(first[1]), len(value)),
            ("dtype", first[1].dtype, value.dtype),
            ("device", first[1].device, value.device),
        ):
            require(
                one == other,
                f"start[{first[0]!r}] and start[{name!r}] differ in {what}: {one} and {other}; "
                "give all the same",
            )
    return values, all(arrays)


def no_dtype(label: str, value: Tensor, *, as_array: bool) -> str:
    """Word the message that a start is of no dtype to compute in, for tensors or for arrays."""
    dtype = str(value.dtype)
    return (
        f"{label} must be float32 or float64, got "
        + (dtype.removeprefix("torch.") if as_array else dtype)
        + f"; convert it by {label}"
        + (".astype(float)" if as_array else ".double()")
    )


def _by_name(bounds: Bounds | None, names: tuple[str, ...]) -> dict[str, OpenInterval]:
    if bounds is None:
        return {}
    if isinstance(bounds, OpenInterval):
        return dict.fromkeys(names, bounds)
    require(
        isinstance(bounds, Mapping),
        "bounds of named parameters must be a dictionary by name, as "
        "{'rate': haltwise.positive()}, got " + type(bounds).__name__,
    )
    assert isinstance(bounds, Mapping)
    for name, limit in bounds.items():
        require(
            name in names,
            f"bounds name {name!r}, but the parameters are {', '.join(map(repr, names))}",
        )
        _require_interval(f"bounds[{name!r}]", limit)
    return dict(bounds)


def _by_column(bounds: Bounds, dim: int) -> list[OpenInterval | None]:
    if isinstance(bounds, OpenInterval):
        return [bounds] * dim
    if isinstance(bounds, Mapping):
        for column in bounds:
            require(
                type(column) is int and 0 <= column < dim,
                f"bounds name column {column!r}, but the parameters have columns 0 to {dim - 1}",
            )
        bounds = [bounds.get(column) for column in range(dim)]
    require(
        isinstance(bounds, Sequence) and len(bounds) == dim,
        "bounds must be haltwise.positive() or haltwise.interval(low, high) for all, a dictionary "
        f"of them by column, or one or None for each of {dim} columns, got {shown(bounds)}",
    )
    for column, limit in enumerate(bounds):
        if limit is not None:
            _require_interval(f"bounds[{column}]", limit)
    return list(bounds)


def _require_interval(label: str, limit: object) -> None:
    require(
        isinstance(limit, OpenInterval),
        f"{label} must be haltwise.positive() or haltwise.interval(low, high), got {shown(limit)}",
    )


def _freed(piece: _Piece, own: Tensor) -> Tensor:
    """The free coordinates of a start, which must lie within its bounds."""
    assert piece.bounds is not None
    outside = (~piece.bounds.holds(own)).nonzero()
    if len(outside):
        problem, column = outside[0].tolist()
        label = "start" if piece.name is None else f"start[{piece.name!r}]"
        require(
            False,
            f"{label} must lie strictly inside {piece.bounds}, but is "
            f"{own[problem, column].item():g} in problem {problem}; start within the bounds",
        )
    return piece.bounds.free(own)
