"""Metrics by name, as frameworks log them."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from haltwise._core.errors import DataWarning, require, warn
from haltwise.interfaces.run_monitor import RunMonitor

__all__ = ["logged", "warn_of_no_point"]

Value = TypeVar("Value")


def logged(values: Mapping[str, Value], name: str) -> Value:
    """The value of a metric.

    Raises:
        InputError: It is not among `values`; the message says which are.
    """
    require(
        name in values,
        f"no metric {name!r} was logged, but {_listed(values)}; name one that is",
    )
    return values[name]


def warn_of_no_point(monitor: RunMonitor, name: str, known: Iterable[str]) -> None:
    """Say at the end of a run that it was never judged, if that is so.

    Warns:
        DataWarning: The monitor has seen no point.
    """
    if monitor.steps == 0:
        warn(
            f"the run was not watched: no metric {name!r} was logged, but {_listed(known)}; name "
            "one that is",
            DataWarning,
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none at all"
