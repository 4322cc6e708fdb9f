"""Marks of what something was learned on, so that it is not judged by the same again unnoticed."""

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from haltwise._core.errors import DataWarning, require, warn
from haltwise._core.percent import in_percent

__all__ = ["marks_of", "require_marks", "require_unseen", "share_seen", "warn_of_seen"]

_KEPT, _DIGITS = 1024, 12  # marks, and hexadecimal digits of each
_MARKS = re.compile(rf"([0-9a-f]{{{_DIGITS}}}){{0,{_KEPT}}}", re.ASCII)
_TELLING = 4  # different numbers; what has fewer, such as a run that never moved, has many equals
_FEW = 0.01  # such a share may be equal by chance, and hardly matters


def marks_of(rows: Iterable[npt.ArrayLike]) -> str:
    """The marks of what is learned from: a checksum of each, of many the lowest 1,024.

    What can be told by them is which share of others is among all of them: of those others whose
    marks would have been kept, it is the share whose marks were (a bottom-k sketch, Cohen and
    Kaplan 2007).

    Args:
        rows: What was measured of each run or problem, any number of numbers; those with fewer than
            four different finite ones tell nothing and have no mark.

    Examples:
        >>> learned = [[3.0, 2.0, 1.5, 1.2], [3.0, 2.5, 2.2, 2.1]]
        >>> share_seen(marks_of(learned), [[3.0, 2.0, 1.5, 1.2], [4.0, 2.0, 1.5, 1.2]])
        0.5
    """
    return "".join(sorted({mark for row in rows if (mark := _mark(row))})[:_KEPT])


def share_seen(marks: str, rows: Iterable[npt.ArrayLike]) -> float:
    """The share of `rows` that is among what `marks` were made of; see `marks_of`."""
    if not marks:
        return 0.0
    known = {marks[at : at + _DIGITS] for at in range(0, len(marks), _DIGITS)}
    found = [_mark(row) for row in rows]
    told = [mark for mark in found if mark]
    highest = max(known) if len(known) == _KEPT else "g"  # above every digit: all were kept
    comparable = [mark for mark in told if mark <= highest]
    if not comparable:
        return 0.0
    return sum(mark in known for mark in comparable) / len(comparable) * len(told) / len(found)


def warn_of_seen(marks: str, rows: Iterable[npt.ArrayLike], what: str) -> None:
    """Warn that much of what judges is what was learned from.

    Args:
        marks: Of what was learned from.
        rows: What was measured of each that judges.
        what: They are called in the message, such as "runs".

    Warns:
        DataWarning: More than one in a hundred is.
    """
    share = share_seen(marks, rows)
    if share > _FEW:
        warn(
            f"about {in_percent(share)} of these {what} are among those that the model was "
            "learned on, which flatters it; judge it by others",
            DataWarning,
        )


def require_unseen(marks: str, rows: Iterable[npt.ArrayLike], what: str) -> None:
    """Refuse to certify by what was learned from; see `warn_of_seen`.

    Raises:
        InputError: More than one in a hundred is.
    """
    share = share_seen(marks, rows)
    require(
        share <= _FEW,
        f"about {in_percent(share)} of these {what} are among those that the model was learned "
        "on, and what is certified by them does not hold for others; certify by others",
    )


def require_marks(marks: str) -> None:
    """Refuse what `marks_of` cannot have written.

    Raises:
        InputError: It is so.
    """
    require(
        _MARKS.fullmatch(marks) is not None,
        f"the marks of what was learned from are damaged: {marks!r:.40}; learn it again",
    )


def _mark(row: npt.ArrayLike) -> str | None:
    values = np.asarray(row, np.float64) + 0.0  # -0 is 0
    if len(np.unique(values[np.isfinite(values)])) < _TELLING:
        return None
    return hashlib.blake2b(values.tobytes(), digest_size=_DIGITS // 2).hexdigest()
