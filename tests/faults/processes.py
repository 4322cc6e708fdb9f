"""Forked processes that are killed, at any time or while they write."""

import contextlib
import itertools
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from haltwise import InputError

EXPECTED = (InputError, MemoryError, OSError)  # what the command line shows as one sentence


class Ended(NamedTuple):
    """A process that has ended: its wait status, what it wrote to stderr, and its number."""

    status: int
    text: str
    pid: int


def fork(
    work: Callable[[], object], seconds: float | None = None, number: int = signal.SIGKILL
) -> Ended:
    """Run `work` in a child, in a session of its own; ended by a signal after `seconds`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            warnings.simplefilter("ignore")
            work()
            code = 0
        except EXPECTED as error:
            os.write(2, f"haltwise: {error}".encode())
            code = 2
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            os.write(2, traceback.format_exc().encode()[-3000:])
        finally:
            os._exit(code)
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, number)  # perhaps a zombie by then, but not yet reaped
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    return Ended(os.waitpid(child, 0)[1], text, child)


def is_ended_by(status: int, number: int) -> bool:
    """Whether a process was ended by a signal of this number."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == number


def is_killed(status: int) -> bool:
    """Whether a process was ended by SIGKILL."""
    return is_ended_by(status, signal.SIGKILL)


def orphans(session: int) -> list[int]:
    """Processes that go on in a session whose first process has ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def events(act: Callable[[str], None]) -> None:
    """Call `act` whenever a file is about to be flushed, renamed or removed, or has just been."""
    sync, move, remove = os.fsync, os.replace, os.unlink

    def fsync(descriptor: int) -> None:
        act("torn")
        sync(descriptor)
        act("written")

    def replace(*paths: Any, **kwargs: Any) -> None:
        act("unnamed")
        move(*paths, **kwargs)
        act("renamed")

    def unlink(*paths: Any, **kwargs: Any) -> None:
        act("removing")
        remove(*paths, **kwargs)

    os.fsync, os.replace, os.unlink = fsync, replace, unlink  # type: ignore[assignment]


def tear() -> None:
    """Cut every file that is being written in half, as a power cut does."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).endswith(".tmp"):
                os.ftruncate(int(entry.name), os.fstat(int(entry.name)).st_size // 2)


def kill_at(number: int, what: Callable[[], None]) -> Callable[[], None]:
    """Make `what` kill its own process at the event of this number."""

    def work() -> None:
        left = itertools.count(number, -1)

        def act(event: str) -> None:
            if next(left) == 0:
                if event == "torn":
                    tear()
                os.kill(os.getpid(), signal.SIGKILL)

        events(act)
        what()

    return work
