"""`haltwise list`: the families to train on and the weights that come with the package."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass

import click

from haltwise._core.errors import require
from haltwise.curves.shipped import PRETRAINED, pretrained
from haltwise.models.loading import card_of, names, stop_names
from haltwise.processes import ProcessFamily, process_families
from haltwise.tasks import TaskFamily, families

__all__ = ["command"]

_WIDTH = 79
Family = TaskFamily | ProcessFamily


@click.command("list")
@click.argument("text", default="")
def command(text: str) -> None:
    """List families and weights, those with TEXT in what is said of them if it is given."""
    every: dict[str, Family] = {**families(), **process_families()}
    found = {name: family for name, family in every.items() if _has(text, name, _sentence(family))}
    shipped, stops = (
        [row for row in map(_row, known) if _has(text, *row)] for known in (names(), stop_names())
    )
    require(
        bool(found or shipped or stops) or _has(text, PRETRAINED),
        f"nothing has {text!r} in its name; see haltwise list",
    )
    if found:
        click.echo("Families (haltwise train FAMILY), and how many parameters a problem has:")
        for sentence, members in _by_sentence(found).items():
            click.echo(_wrapped(sentence, "  "))
            for name in members:
                click.echo(_family(name, found[name], max(map(len, found))))
    for title, rows in (
        ("Weights of optimizers (haltwise evaluate NAME, haltwise.load(NAME)):", shipped),
        ("Stops of engines (haltwise.solve(..., stop=NAME)):", stops),
    ):
        if rows:
            click.echo(title)
            _print_table([("name", "family", "steps", "price", "halting"), *rows])
    if _has(text, PRETRAINED):
        card = pretrained().card
        click.echo("Weights that give training runs up (haltwise watch, haltwise.RunMonitor):")
        click.echo(f"  {PRETRAINED}, learned on {card.num_runs} runs of {card.num_groups} groups")


def _print_table(table: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = " ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo(f"  {line}".rstrip())


def _has(text: str, *words: str) -> bool:
    return any(text.lower() in each.lower() for each in words)


def _sentence(family: Family) -> str:
    return (type(family).__doc__ or "").splitlines()[0]


def _by_sentence(found: Mapping[str, Family]) -> dict[str, list[str]]:
    """Names of families that one sentence describes, in order."""
    described: dict[str, list[str]] = {}
    for name in sorted(found):
        described.setdefault(_sentence(found[name]), []).append(name)
    return described


def _family(name: str, family: Family, width: int) -> str:
    """A line with the settings in which a family differs from the plain one of its class."""
    size = "process" if isinstance(family, ProcessFamily) else f"{family.dim:>5}"
    own = [
        f"{each.name}={getattr(family, each.name)}"
        for each in (fields(family) if is_dataclass(family) else ())
        if each.default is not MISSING and getattr(family, each.name) != each.default
    ]
    line = f"    {name:<{width}}  {size}"
    return _wrapped(", ".join(own), f"{line}  ", " " * (len(line) + 2)) if own else line


def _wrapped(text: str, first: str, later: str | None = None) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=first, subsequent_indent=first if later is None else later
    )


def _row(name: str) -> Sequence[str]:
    card = card_of(name)
    family = "recorded runs" if card.family is None else card.family.name
    return (name, family, str(card.horizon), f"{card.price:g}", card.method.name)
