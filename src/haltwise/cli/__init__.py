"""The command line: one file a command, imported when it is used."""

import codecs
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, final

import click

from haltwise._core.errors import CheckpointWarning, InputError, printable
from haltwise._core.progress import duration, unless_gone
from haltwise._core.version import __version__
from haltwise.cli import completion

__all__ = ["cli", "command_names", "main", "run"]

_COMMANDS: Mapping[str, Mapping[str, str]] = {
    "Training runs and loops of your own": {
        "learn": "Learn from recorded runs when to give one up.",
        "judge": "Judge what was learned on runs that it has not seen.",
        "replay": "See where recorded runs would have stopped at any price.",
        "watch": "Follow a growing log, and say when to give the run up.",
        "train-monitor": "Learn when to stop a loop from recorded runs of it.",
    },
    "Many problems to solve": {
        "recommend": "Try what ships on your problems and say what to use.",
        "evaluate": "Judge an optimizer and its stops on held-out problems.",
        "explore": "Watch a problem being solved at any price.",
    },
    "When a model stops": {
        "calibrate": "Choose anew when a trained model stops.",
        "certify": "Stop where a risk is certified to be small.",
        "stopping-report": "Judge stops that are given with their losses.",
    },
    "Research": {
        "train": "Train an optimizer that knows when to stop.",
        "study": "Compare stop rules over seeds and prices.",
        "bench": "Compare all stop rules on recorded runs of many kinds.",
        "diagnose": "Find out why a training does not learn.",
    },
    "To look up": {
        "report": "Write a run and its evaluations as one page.",
        "list": "List families and weights.",
        "info": "Say what runs here: versions, devices, kernels.",
    },
}


def command_names() -> list[str]:
    """Every command, in the order of the help."""
    return [name for section in _COMMANDS.values() for name in section]


@final
class _LazyGroup(click.Group):
    """Commands that are imported when they are used: none waits for the libraries of others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return command_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = {name: text for section in _COMMANDS.values() for name, text in section.items()}
        if cmd_name not in known:
            return None
        if ctx.resilient_parsing:
            return completion.Completed(cmd_name, known[cmd_name])
        found = completion.command(cmd_name)
        from haltwise.cli.places import kept_apart  # as heavy as a command

        return kept_apart(found)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([*section.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="haltwise")
def cli() -> None:
    """Stop any iterative process when its next step is not worth its price.

    A price is what one more step must gain to be worth taking, in units of the loss. Every command
    has a --help of its own; names and files are completed in a shell that has run

    \b
      eval "$(_HALTWISE_COMPLETE=bash_source haltwise)"    (or zsh_source)
    """  # noqa: D301 - click keeps the lines of a paragraph that the character \b begins


_LONG = 60.0  # seconds, from which on a command says what it took


def main(command: click.Command = cli) -> None:
    """Run the command line of this process, and end it.

    Args:
        command: Of a program of its own, if not `haltwise`.
    """
    warnings.showwarning = _show_warning
    codecs.register_error("haltwise", _spelt_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test may have put another in its place
            stream.reconfigure(errors="haltwise")
    for name in ("SIGTERM", "SIGHUP"):  # of which Windows has the first
        number = getattr(signal, name, signal.SIGTERM)
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)  # so that nothing is left half written
    sys.exit(run(command))


def run(command: click.Command = cli, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; what is wrong with it is one sentence on the error stream.

    Args:
        command: Of a program of its own, if not `haltwise`.
        arguments: Those of this process if None.

    Returns:
        The exit code: 2 for bad input, 130 if interrupted.
    """
    started = time.monotonic()
    try:
        code = command.main(arguments, standalone_mode=False)
        taken = time.monotonic() - started
        if taken >= _LONG and os.environ.get("RANK", "0") == "0":  # torchrun's first worker
            click.echo(f"took {duration(taken)}", err=True)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.1 has none
            error.show()
        else:
            _complain(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _complain(f"out of memory; ask for fewer problems at once: {error or 'it is full'}")
        return 2
    except (InputError, OSError) as error:  # a full disk may strike anywhere
        _complain(str(error))
        return 2


def _interrupt(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt


def _complain(message: str) -> None:
    click.echo(f"haltwise: {printable(message)}", err=True)


def _spelt_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write characters that an output's encoding lacks in ASCII: a minus sign must not be lost."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
    return plain, error.end


_PLAIN = str.maketrans(
    {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{NARROW NO-BREAK SPACE}": " "}
)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether PyTorch could not allocate memory, for which CPUs have no exception of their own."""
    text = str(error).lower()
    words = ("allocate memory", "out of memory", "bad_alloc", "alloc_failed", "overflowed")
    return isinstance(error, MemoryError) or any(word in text for word in words)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One sentence, without the line of code that gave it."""
    kind = "" if issubclass(category, CheckpointWarning) else f"{category.__name__}: "
    _clear_spinner()
    _complain(f"warning: {kind}{message}")


def _clear_spinner() -> None:
    """Clear the line of a terminal in which Rich may show that something goes on."""
    if "rich.progress" in sys.modules:
        from rich.console import Console
        from rich.control import Control
        from rich.segment import ControlType

        line = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
        unless_gone(Console(stderr=True).control)(line)
