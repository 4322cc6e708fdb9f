"""Processes that a program starts and never leaves behind, whatever ends it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

__all__ = ["Children"]

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_PATIENCE = 60.0  # seconds for a training to write its checkpoint


class Children:
    """Commands of `haltwise` that run to their end, or end when their parent is ended.

    Each is in a session of its own, so that a signal reaches it through its parent alone, once.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """End all of them by a signal, Ctrl-C too, and begin no more; they leave checkpoints."""

        def interrupt(signum: int, frame: FrameType | None) -> None:
            del signum, frame
            raise KeyboardInterrupt

        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            # SIGINT, too: whoever is started in the background by a shell inherits it ignored.
            if number == signal.SIGINT or handler != signal.SIG_IGN:
                signal.signal(number, interrupt)
        try:
            yield
        except KeyboardInterrupt:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # once is enough
            self._end()
            raise
        for number, handler in before.items():
            signal.signal(number, handler)

    def run(
        self, arguments: Sequence[str], cwd: Path | None = None, *, quiet: bool = False
    ) -> tuple[int, str]:
        """Run a command; to be called within `guarded`, from any thread.

        Args:
            arguments: Arguments of `haltwise`.
            cwd: Directory to run in.
            quiet: Whether to keep what it writes.

        Returns:
            Its exit code, and what it wrote to stderr if that was kept.
        """
        with self._lock:
            if self._ended:
                return 130, "haltwise: interrupted"
            process = subprocess.Popen(
                [sys.executable, "-m", "haltwise", *arguments],
                cwd=cwd,
                stdout=subprocess.DEVNULL if quiet else None,
                stderr=subprocess.PIPE if quiet else None,
                text=True,
                start_new_session=True,
            )
            self._running.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
        return process.returncode, errors or ""

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            running = tuple(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
