"""Tables on the terminal, and records in JSON files."""

import json
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Terminal
from rich.text import Text

from haltwise._core.errors import printable
from haltwise._core.files import write_atomically
from haltwise._core.json import to_json
from haltwise.evaluation.records import StoppingRecord
from haltwise.report.page import Table
from haltwise.report.stopping import rules_table, sentences

__all__ = ["plain", "print_stopping", "print_table", "say", "write_json"]


def plain(text: str) -> Text:
    """Text for Rich as it stands: names may come from any file, and hold markup or controls."""
    return Text(printable(text))


def say(text: object = "") -> None:
    """Print a line."""
    click.echo(printable(str(text)))


def print_stopping(record: StoppingRecord) -> None:
    """Print how stop rules did, as a table and three sentences."""
    print_table(rules_table(record, wide=False))
    say(" ".join(sentences(record)[:3]))


def print_table(table: Table) -> None:
    """Print a table of a report, its title above and its note below."""
    shown = Terminal(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, column in enumerate(table.headings):
        shown.add_column(plain(column), justify="right" if place else "left", no_wrap=place > 0)
    for place, row in enumerate(table.cells):
        shown.add_row(*map(plain, row), style="bold" if place == table.strong else None)
    console = Console()
    console.print(plain(table.title), style="bold")
    console.print(shown)
    console.print(plain(table.note), style="dim")


def write_json(path: Path | None, record: object) -> None:
    """Write a record as JSON, atomically, where there is a path."""
    if path is not None:
        write_atomically(path, (json.dumps(to_json(record), indent=1) + "\n").encode())
