"""The one exception for input that a user can mend, and warnings; their text is safe to print."""

import contextlib
import sys
import unicodedata
import warnings
from collections.abc import Iterator

__all__ = [
    "CalibrationWarning",
    "CheckpointWarning",
    "DataWarning",
    "FitWarning",
    "GradientWarning",
    "InputError",
    "printable",
    "refusing_others",
    "require",
    "warn",
]


def printable(text: str) -> str:
    r"""Escape what a terminal would obey or cannot encode, since text may come from any file.

    Control and format characters and lone surrogates are written as Python writes them; line
    breaks and tabs stay.

    Examples:
        >>> printable("a title: \x1b]0;mine\x07")
        'a title: \\x1b]0;mine\\x07'
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else ascii(c)[1:-1]
        for c in text
    )


class _Printable:
    """An exception or a warning whose message is `printable`."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))  # type: ignore[call-arg]


class InputError(_Printable, ValueError):
    """Bad input: the message names the value, what was expected and the way out.

    The command line prints the message alone and exits with code 2; a library user sees an
    ordinary `ValueError`.
    """


class CalibrationWarning(_Printable, UserWarning):
    """A calibration that was done, but hardly as meant: the message says why."""


class CheckpointWarning(_Printable, UserWarning):
    """A run goes on, but not quite from where or as it was left: the message says why."""


class DataWarning(_Printable, UserWarning):
    """Data that were read, but not all of them: the message says what was left out and why."""


class FitWarning(_Printable, UserWarning):
    """Weights are used on what they were not trained for: the message says in what respect."""


class GradientWarning(_Printable, UserWarning):
    """A gradient that is not that of its loss: the message says what may have cut it."""


_OF_TOOLS = {
    "haltwise", "torch", "contextlib", "sklearn", "accelerate", "keras", "lightgbm", "lightning",
    "optuna", "pytorch_lightning", "ray", "scipy", "transformers", "xgboost",
}  # fmt: skip
"""Packages whose lines are not where a user would mend anything."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's that led here: the innermost that is of none of the tools."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _OF_TOOLS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def refusing_others(message: str, *, with_cause: bool = False) -> Iterator[None]:
    """Raise `InputError(message)` where a state or a document is built otherwise than expected.

    The error is named at the end of the message `with_cause`.
    """
    try:
        yield
    except InputError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise InputError(f"{message}: {error!r}" if with_cause else message) from error


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)
