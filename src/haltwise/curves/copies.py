"""Copies among recorded runs, such as those of a backup that lies in the same folder."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from haltwise._core.seen import marks_of, require_unseen, warn_of_seen
from haltwise.certificates import warn_of_copies
from haltwise.curves.curves import Curves, Floats
from haltwise.curves.rule import CurveRule

__all__ = ["marks_of_runs", "require_unseen_runs", "warn_of_copied_runs", "warn_of_seen_runs"]


def marks_of_runs(curves: Curves) -> str:
    """Marks by which these runs are known again, however their cost is counted."""
    return marks_of(_metrics(curves))


def warn_of_seen_runs(rule: CurveRule, curves: Curves) -> None:
    """Warn where a rule is judged by runs that it was learned on.

    Warns:
        DataWarning: More than one in a hundred is.
    """
    warn_of_seen(rule.seen, _metrics(curves), "runs")


def require_unseen_runs(rule: CurveRule, curves: Curves) -> None:
    """Refuse to certify a rule by runs that it was learned on.

    Raises:
        InputError: More than one in a hundred is.
    """
    require_unseen(rule.seen, _metrics(curves), "runs")


def warn_of_copied_runs(curves: Curves, groups: Sequence[str] | None, **told: Any) -> None:
    """Warn where many runs have the very points of another; see `warn_of_copies`.

    Args:
        curves: The runs.
        groups: Of each run; within one, copies are no matter. None if there are no groups.
        **told: Its further arguments.
    """
    measured = np.column_stack((curves.cost, curves.values))
    bounds = zip(curves.offset[:-1], curves.offset[1:], strict=True)
    warn_of_copies([measured[a:b].tobytes() for a, b in bounds], groups, "runs", **told)


def _metrics(curves: Curves) -> list[Floats]:
    """What was judged at the points of each run."""
    return [curve.loss for curve in curves.measured()]
