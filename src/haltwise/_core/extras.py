"""Libraries that only some of the package needs, and the sentence where one is missing."""

import contextlib
from collections.abc import Iterator

from haltwise._core.errors import InputError

__all__ = ["extra"]


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Import libraries of an extra of the package.

    Args:
        name: Of the extra in `pip install 'haltwise[name]'`.

    Raises:
        InputError: A library is missing.

    Examples:
        >>> with extra("learn"):
        ...     import no_such_library
        Traceback (most recent call last):
        haltwise._core.errors.InputError: no_such_library is missing: pip install 'haltwise[learn]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise InputError(f"{missing} is missing: pip install 'haltwise[{name}]'") from None
