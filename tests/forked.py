"""Processes of their own that import nothing: a server that holds all forks them."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from in_process import Result

import haltwise.__main__

__all__ = ["Command", "code", "command", "hold", "run"]

_SLOW_TO_IMPORT = ("haltwise.training", "sklearn.linear_model", "torch._dynamo")


def hold(*modules: str) -> None:
    """Have the server import these, too, unless it runs already."""
    multiprocessing.set_forkserver_preload([__name__, *_SLOW_TO_IMPORT, *modules])


def command(arguments: list[str]) -> None:
    """Be a command of `haltwise`."""
    sys.argv = ["haltwise", *arguments]
    haltwise.__main__.main()


def code(arguments: list[str]) -> None:
    """Be the program whose code is the first argument."""
    sys.argv = ["-c", *arguments[1:]]
    exec(compile(arguments[0], "code", "exec", dont_inherit=True), {"__name__": "__main__"})


class Command:
    """A command of `haltwise`, or other work, that is ended with the tests at the latest."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        folder: Path,
        environment: Mapping[str, str] = {},
        work: Callable[[list[str]], None] = command,
    ) -> None:
        """Start it in `cwd`; what it prints goes to two files in `folder`."""
        hold()
        self._files = (folder / "stdout", folder / "stderr")
        given = (work, [*map(str, arguments)], cwd, self._files, dict(environment))
        self._process = ForkServerProcess(target=_run, args=given, daemon=True)  # a test may fail
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def wait(self, seconds: float = 300) -> Result:
        """Wait until it has ended; a signal that ended it is a negative code."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError(f"process {self.pid} has not ended in {seconds} s")
        # A test may have it write in another encoding.
        return Result(code, *(path.read_text("utf-8", "replace") for path in self._files))


def run(
    *arguments: object, cwd: Path, folder: Path, work: Callable[[list[str]], None] = command
) -> Result:
    """Run a command, or other work, to its end."""
    return Command(*arguments, cwd=cwd, folder=folder, work=work).wait()


def _run(
    work: Callable[[list[str]], None],
    arguments: list[str],
    cwd: Path,
    files: tuple[Path, Path],
    environment: dict[str, str],
) -> None:
    os.environ |= environment
    os.chdir(cwd)
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they may be ignored
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work(arguments)
