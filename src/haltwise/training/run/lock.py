"""A lock that one process holds on a run directory; it ends with the process, however that ends."""

import contextlib
import os
import weakref
from pathlib import Path
from typing import final

from haltwise._core.errors import InputError

__all__ = ["RunLock"]


@final
class RunLock:
    """An advisory lock on a file, which stays empty; where there are no locks it does nothing.

    Args:
        path: The file, created if missing; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._close: weakref.finalize[[int], RunLock] | None = None

    def take(self, message: str) -> None:
        """Take the lock, if it is not held here already.

        Raises:
            InputError: Another process holds it, which `message` says.
        """
        if self._close is not None and self._close.alive:
            return
        with contextlib.suppress(ImportError, OSError):  # Windows has no fcntl, some mounts no lock
            import fcntl

            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise InputError(message) from None
            except OSError:
                os.close(descriptor)
                raise
            self._close = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Release the lock."""
        if self._close is not None:
            self._close()
