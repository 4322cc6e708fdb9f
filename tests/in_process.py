"""The command line without a process of its own, for tests that need many commands."""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

from haltwise.cli import run


class Result(NamedTuple):
    """What `subprocess.run` says, too."""

    returncode: int
    stdout: str
    stderr: str


def haltwise(*arguments: object, cwd: Path) -> Result:
    """Run one command in `cwd`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments=[*map(str, arguments)])
    return Result(code, out.getvalue(), err.getvalue())
