"""The command line: one file a command."""

import sys
import warnings
from typing import TextIO

import click

from haltwise._core.errors import CheckpointWarning, InputError
from haltwise._core.version import __version__
from haltwise.cli.diagnose import diagnose
from haltwise.cli.evaluate import evaluate
from haltwise.cli.explore import explore
from haltwise.cli.info import info
from haltwise.cli.list import list_
from haltwise.cli.report import report
from haltwise.cli.reproduce import reproduce
from haltwise.cli.stopping_report import stopping_report
from haltwise.cli.study import study
from haltwise.cli.sweep import sweep
from haltwise.cli.train import train
from haltwise.cli.train_monitor import train_monitor

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="haltwise")
def cli() -> None:
    """Learned optimizers that know when to stop.

    Losses are in the units of the family (nats for regression), prices are losses per step, steps
    are updates of the optimizee's parameters, meta-steps are updates of the optimizer's weights.
    """


_COMMANDS = (
    train,
    train_monitor,
    sweep,
    evaluate,
    study,
    report,
    reproduce,
    explore,
    diagnose,
    stopping_report,
    list_,
    info,
)
for command in _COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InputError, MemoryError, OSError) as error:  # a full disk may strike anywhere
        click.echo(f"haltwise: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("haltwise: interrupted", err=True)
        sys.exit(130)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One sentence, without the line of code that gave it."""
    del filename, lineno, file, line
    kind = "" if issubclass(category, CheckpointWarning) else f"{category.__name__}: "
    click.echo(f"haltwise: warning: {kind}{message}", err=True)
