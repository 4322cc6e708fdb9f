"""Results in the form of a user's problem: named parameters within bounds, NumPy arrays, tables."""

import importlib
import itertools
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from haltwise._core.errors import require
from haltwise._core.extras import extra
from haltwise._core.settings import shown
from haltwise._core.tensors import map_tensors
from haltwise.interfaces.groups import Groups
from haltwise.tasks.base import TaskBatch
from haltwise.tasks.coordinates import Coordinates
from haltwise.tasks.function import FunctionBatch

__all__ = [
    "Values",
    "as_given",
    "columns_of",
    "coordinates_of",
    "data_frame",
    "in_coordinates",
    "in_own_form",
    "num_parameters",
]

Record = TypeVar("Record")

Values: TypeAlias = Any
"""A tensor, or a NumPy array of the same shape and dtype where the start was given in arrays, which
no type checker can know."""


def coordinates_of(problem: TaskBatch) -> Coordinates | None:
    """How coordinates stand for a problem's parameters; None where they are these."""
    return problem.coordinates if isinstance(problem, FunctionBatch) else None


def in_coordinates(problem: TaskBatch) -> TaskBatch:
    """The same problem, but solutions of it are in coordinates [B, D], as tensors."""
    coordinates = coordinates_of(problem)
    if coordinates is None:
        return problem
    assert isinstance(problem, FunctionBatch)
    return replace(problem, coordinates=replace(coordinates, are_results=True))


def in_own_form(record: Record, problem: TaskBatch) -> Record:
    """Convert `record.params` to the problem's parameters, and all to arrays if its start was one.

    Args:
        record: A dataclass whose field `params` are coordinates, shape [B, D].
        problem: What it is about.
    """
    coordinates = coordinates_of(problem)
    if coordinates is None or coordinates.are_results:
        return record
    anything: Any = record
    own: Record = replace(anything, params=coordinates.own(anything.params))
    return as_given(own, coordinates)


def as_given(record: Record, coordinates: Coordinates | None) -> Record:
    """The record with arrays for its tensors where the start was given in arrays."""
    if coordinates is None or not coordinates.as_arrays:
        return record
    to_array: Any = _array
    arrays: Record = map_tensors(record, to_array)
    return arrays


def _array(value: torch.Tensor) -> npt.NDArray[Any]:
    return value.contiguous().numpy(force=True)


def columns_of(params: Any, suffix: str = "", names: Any = None) -> dict[str, npt.NDArray[Any]]:
    """The numbers of parameters in columns [B] that name them.

    Args:
        params: Parameters, one tensor or array or several by name, [B, ...] each.
        suffix: For the end of each name.
        names: What to call the numbers of each problem's parameters, in order: a list for a single
            tensor, lists by name for named ones. Those without are called `params[0]` and so on.

    Raises:
        InputError: There are names of other parameters, or not as many as numbers, or one twice.

    Examples:
        >>> sorted(columns_of({"rate": torch.ones(2), "effect": torch.ones(2, 3)}))
        ['effect[0]', 'effect[1]', 'effect[2]', 'rate']
        >>> list(columns_of(torch.ones(2, 3), "_se", names=["base", "age", "dose"]))
        ['base_se', 'age_se', 'dose_se']
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    named = params if isinstance(params, Mapping) else {"params": params}
    given = _names_by_parameter(names, named, is_named=isinstance(params, Mapping))
    for name, value in named.items():
        array: npt.NDArray[Any] = torch.as_tensor(value).numpy(force=True)
        flat = array.reshape(len(array), -1)
        places = itertools.product(*map(range, array.shape[1:]))
        labels = [f"{name}[{','.join(map(str, place))}]" if place else name for place in places]
        if name in given:
            own = given[name]
            label = f"names[{name!r}]" if isinstance(params, Mapping) else "names"
            require(
                isinstance(own, Sequence)
                and not isinstance(own, str)
                and len(own) == len(labels)
                and all(isinstance(each, str) for each in own),
                f"{label} must be one for each of the {len(labels)} numbers of {name}, got "
                f"{shown(own)}",
            )
            labels = list(own)
        for number, label in enumerate(labels):
            _require_new(label + suffix, columns)
            columns[label + suffix] = flat[:, number]
    return columns


def _names_by_parameter(
    names: Any, params: Mapping[str, Any], *, is_named: bool
) -> Mapping[str, Any]:
    """Lists of names by parameter."""
    if names is None:
        return {}
    require(
        isinstance(names, Mapping) or not is_named,
        "names must be a dictionary of lists of names by parameter, of "
        f"{', '.join(map(repr, params))}, got {shown(names)}",
    )
    given: Mapping[str, Any] = names if isinstance(names, Mapping) else {"params": names}
    for name in given:
        require(
            name in params,
            f"names are of {name!r}, but the parameters are {', '.join(map(repr, params))}",
        )
    return given


def _require_new(name: str, columns: Container[str]) -> None:
    require(
        name not in columns,
        f"two columns of the data frame would be called {name!r}; give the parameter another name",
    )


def num_parameters(params: Any) -> int:
    """D, how many numbers the parameters of a problem are."""
    values = params.values() if isinstance(params, Mapping) else (params,)
    return sum(math.prod(value.shape[1:]) for value in values)


def data_frame(
    columns: Sequence[tuple[str, npt.NDArray[Any]]],
    texts: Mapping[str, tuple[npt.NDArray[np.int64], Sequence[str]]],
    index: Any,
) -> Any:
    """A data frame of pandas.

    Args:
        columns: Names and numbers, each [B].
        texts: Columns of texts, as indices [B] into possible ones.
        index: A label for each row, or the groups that are the rows; counted from 0 if None.

    Raises:
        InputError: There is no pandas, `index` has another length, or two columns share a name.
    """
    with extra("pandas"):
        pandas = importlib.import_module("pandas")
    names = [*(name for name, _ in columns), *texts]
    seen: set[str] = set()
    for name in names:
        _require_new(name, seen)
        seen.add(name)
    number = len(columns[0][1])
    require(
        index is None or len(index) == number,
        f"index must have one label for each of the {number} problems, got {shown(index)}",
    )
    levels = index.by if isinstance(index, Groups) else ()
    labels = index.keys if isinstance(index, Groups) else index
    if isinstance(labels, list) and labels and isinstance(labels[0], tuple):
        labels = pandas.MultiIndex.from_tuples(labels, names=levels or None)
    elif levels:
        labels = pandas.Index(labels, name=levels[0])
    named = {
        name: np.array(possible, dtype=object)[codes] for name, (codes, possible) in texts.items()
    }
    return pandas.DataFrame({**dict(columns), **named}, index=labels)
