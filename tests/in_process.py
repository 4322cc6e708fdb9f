"""The command line without a process of its own, for tests that need many commands."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from haltwise import InputError
from haltwise.cli import cli


class Result(NamedTuple):
    """What `subprocess.run` says, too."""

    returncode: int
    stdout: str
    stderr: str


def haltwise(*arguments: object, cwd: Path) -> Result:
    """Run one command in `cwd`; bad input is a line on stderr, as `haltwise.cli.main` has it."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(cli, list(map(str, arguments)))
    if isinstance(result.exception, InputError):
        return Result(2, result.stdout, f"haltwise: {result.exception}\n")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)
