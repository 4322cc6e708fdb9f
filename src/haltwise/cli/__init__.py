"""The command line: one file a command, imported when it is used."""

import importlib
import sys
import warnings
from collections.abc import Mapping
from typing import NamedTuple, TextIO, final

import click

from haltwise._core.errors import CheckpointWarning, InputError
from haltwise._core.version import __version__

__all__ = ["cli", "main"]


class _Command(NamedTuple):
    """Where a command lies, and what it does in a few words."""

    module: str
    attribute: str
    help: str


_COMMANDS: Mapping[str, Mapping[str, _Command]] = {
    "Train": {
        "train": _Command("train", "train", "Train an optimizer that knows when to stop."),
        "train-monitor": _Command(
            "train_monitor", "train_monitor", "Learn when to stop a loop from recorded runs of it."
        ),
    },
    "Judge": {
        "evaluate": _Command(
            "evaluate", "evaluate", "Evaluate an optimizer on held-out problems, baselines beside."
        ),
        "study": _Command("study", "study", "Compare stop rules over seeds and prices."),
        "stopping-report": _Command(
            "stopping_report", "stopping_report", "Judge stops that are given with their losses."
        ),
        "diagnose": _Command("diagnose", "diagnose", "Find out why a training does not learn."),
    },
    "Look": {
        "report": _Command("report", "report", "Write a run and its evaluations as one page."),
        "explore": _Command("explore", "explore", "Watch a problem being solved at any price."),
        "list": _Command("list", "list_", "List families and shipped weights."),
        "info": _Command("info", "info", "Say what runs here: versions, devices, kernels."),
    },
}


@final
class _LazyGroup(click.Group):
    """Commands that are imported when they are used: none waits for the libraries of others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in _COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in _COMMANDS.values():
            if cmd_name in section:
                place = section[cmd_name]
                module = importlib.import_module(f"haltwise.cli.{place.module}")
                command: click.Command = getattr(module, place.attribute)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, place.help) for name, place in section.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="haltwise")
def cli() -> None:
    """Stop any iterative process when its next step is not worth its price.

    Losses are in the units of the family (nats for regression), prices are losses per step, steps
    are updates of the optimizee's parameters, meta-steps are updates of the optimizer's weights.
    """


def main(command: click.Command = cli) -> None:
    """Run a command line; bad input ends with one sentence and exit code 2.

    Args:
        command: The command; a program of its own may give another than `haltwise`.
    """
    warnings.showwarning = _show_warning
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.1 has none
            error.show()
        else:
            click.echo(f"haltwise: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except (InputError, MemoryError, OSError) as error:  # a full disk may strike anywhere
        click.echo(f"haltwise: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("haltwise: interrupted", err=True)
        sys.exit(130)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        click.echo(f"haltwise: out of memory; ask for fewer problems at once: {error}", err=True)
        sys.exit(2)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch could not allocate memory, for which CPUs have no exception of their own."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


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
