"""The command line: one file a command."""

import sys

import click

from haltwise._errors import InputError
from haltwise._version import __version__
from haltwise.cli.diagnose import diagnose
from haltwise.cli.evaluate import evaluate
from haltwise.cli.list import list_
from haltwise.cli.report import report
from haltwise.cli.stopping_report import stopping_report
from haltwise.cli.study import study
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


for command in (train, train_monitor, evaluate, study, report, stopping_report, diagnose, list_):
    cli.add_command(command)


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
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
