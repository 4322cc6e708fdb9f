"""Tables on the terminal, and records in JSON files."""

import json
from pathlib import Path
from typing import Literal

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Terminal
from rich.text import Text

from haltwise._core.errors import printable
from haltwise._core.files import make_directory, write_atomically
from haltwise._core.json import to_json
from haltwise.evaluation.records import StoppingRecord
from haltwise.report.page import Table
from haltwise.report.stopping import rules_table, sentences, warnings

__all__ = ["plain", "print_stopping", "print_table", "print_warnings", "say", "write_json"]

_FIRST = 18  # characters that are left to the first column, if it needs them


def plain(text: str) -> Text:
    """Text for Rich as it stands: names may come from any file, and hold markup or controls."""
    return Text(printable(text))


def say(text: object = "") -> None:
    """Print a line."""
    click.echo(printable(str(text)))


def print_stopping(record: StoppingRecord) -> None:
    """Print how stop rules did: what was left out, a table and three sentences."""
    print_warnings(record)
    print_table(rules_table(record, wide=False))
    say(" ".join(sentences(record)[:3]))


def print_warnings(record: StoppingRecord) -> None:
    """Print what makes a record mean less than it seems to."""
    for warning in warnings(record):
        say(f"Warning: {warning}")


def print_table(table: Table) -> None:
    """Print a table of a report, its title above and its note below.

    Where it is too wide, columns follow in another block, each with the first column.
    """
    console = Console()
    console.print(plain(table.title), style="bold")
    for block in _blocks(table, console.width):
        shown = Terminal(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place in block:
            side: Literal["left", "right"] = "right" if place else "left"
            shown.add_column(
                plain(table.headings[place]), justify=side, no_wrap=place > 0, overflow="fold"
            )
        for number, row in enumerate(table.cells):
            style = "bold" if number == table.strong else None
            shown.add_row(*(plain(row[place]) for place in block), style=style)
        console.print(shown)
    console.print(plain(table.note), style="dim")


def _blocks(table: Table, width: int) -> list[list[int]]:
    """The columns that fit beside each other and the first, which may be broken into lines."""
    wide = [
        2 + max(cell_len(printable(text)) for text in column)
        for column in zip(table.headings, *table.cells, strict=True)
    ]
    blocks: list[list[int]] = []
    room = 0
    for place in range(1, len(wide)):
        if not blocks or wide[place] > room:
            blocks.append([0])
            room = width - 1 - min(wide[0], _FIRST)
        blocks[-1].append(place)
        room -= wide[place]
    return blocks or [[0]]


def write_json(path: Path | None, record: object) -> None:
    """Write a record as JSON, atomically, where there is a path; its directory is made."""
    if path is not None:
        make_directory(path.parent)
        write_atomically(path, (json.dumps(to_json(record), indent=1) + "\n").encode())
