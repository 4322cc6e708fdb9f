"""Copies among what certifies: each counts as a problem, but tells nothing new."""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from haltwise._core.errors import CalibrationWarning, warn
from haltwise.certificates.table import label_codes

__all__ = ["warn_of_copies"]

_FEW = 0.01  # such a share of copies hardly matters, and problems may be equal by chance
_CERTIFIED = "a certificate takes them for independent, and promises too much if they are copies"


def warn_of_copies(
    records: Sequence[Hashable],
    groups: Sequence[Any] | Tensor | None,
    what: str = "problems",
    *,
    harm: str = _CERTIFIED,
    category: type[Warning] = CalibrationWarning,
) -> None:
    """Warn where much of what is taken for independent may be the same thing several times.

    Args:
        records: Each problem's whole record, such as the bytes of its losses.
        groups: Of each problem; within one, copies are no matter. None if there are no groups.
        what: They are called in the message.
        harm: What copies do, for the message.
        category: Of the warning.

    Raises:
        InputError: There is not one label a problem.

    Warns:
        category: More than one problem in a hundred equals one before it.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True, action="always") as found:
        ...     warn_of_copies("abb", None)
        ...     warn_of_copies("abb", [1, 2, 2])
        >>> [str(one.message).partition(";")[0] for one in found]
        ['1 of 3 problems equal one before them in all that was recorded']
    """
    num = len(records)
    labels = range(num) if groups is None else label_codes(groups, num).tolist()
    first: dict[Hashable, int] = {}
    copies = sum(
        first.setdefault(record, label) != label
        for record, label in zip(records, labels, strict=True)
    )
    if copies > _FEW * num:
        warn(
            f"{copies} of {num} {what} equal one before them in all that was recorded; {harm}: "
            "leave those out, or name groups in which each stands with what it was copied from",
            category,
        )
