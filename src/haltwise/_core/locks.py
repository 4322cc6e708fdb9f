"""Locks on files, by which processes of one host keep out of each other's directories."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from haltwise._core.errors import InputError, require

__all__ = ["lock", "locked"]


def lock(path: Path, taken: str) -> int | None:
    """Lock a file, which is made if it is missing, until what is returned is closed.

    Args:
        path: The file.
        taken: The sentence to refuse with where another process has locked it.

    Returns:
        Its descriptor, also closed when the process ends; None where there are no locks.

    Raises:
        InputError: It is locked, or cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; correct its permissions or choose another "
            "directory"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        require(not isinstance(error, BlockingIOError), taken)
        return None  # some mounts know no locks
    return descriptor


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Lock a file meanwhile; see `lock`."""
    descriptor = lock(path, taken)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
