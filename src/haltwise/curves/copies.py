"""Copies among recorded runs, such as those of a backup that lies in the same folder."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from haltwise.certificates import warn_of_copies
from haltwise.curves.curves import Curves

__all__ = ["warn_of_copied_runs"]


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
