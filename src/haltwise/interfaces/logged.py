"""Metrics by name, as frameworks log them."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from haltwise._core.errors import DataWarning, require, warn

__all__ = ["logged", "warn_of_no_point"]

Value = TypeVar("Value")


def logged(values: Mapping[str, Value], name: str) -> Value:
    """The value of a metric.

    Raises:
        InputError: It is not among `values`; the message says which are.
    """
    require(name in values, _no_metric(name, values))
    return values[name]


def warn_of_no_point(num_points: int, name: str, known: Iterable[str]) -> None:
    """Say at the end of a run that its monitor has seen nothing of it, if that is so.

    Warns:
        DataWarning: There was no point.
    """
    if num_points == 0:
        warn(f"the run was not watched: {_no_metric(name, known)}", DataWarning)


def _no_metric(name: str, known: Iterable[str]) -> str:
    listed = ", ".join(sorted(known))
    if not listed:
        return f"no metric {name!r} was logged, nor any other; have the training evaluate one"
    return f"no metric {name!r} was logged, but {listed}; name one that is"
