"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Bad input: the message names the value, what was expected and the way out.

    The command line prints the message alone and exits with code 2; a library user sees an
    ordinary `ValueError`.
    """


class CalibrationWarning(UserWarning):
    """A calibration that was done, but hardly as meant: the message says why."""


class CheckpointWarning(UserWarning):
    """A run goes on, but not quite from where or as it was left: the message says why."""


class FitWarning(UserWarning):
    """Weights are used on what they were not trained for: the message says in what respect."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)
