"""`haltwise list`: the families to train on and the shipped weights."""

import textwrap
from collections.abc import Sequence

import click

from haltwise._core.errors import require
from haltwise.models.loading import card_of, names, stop_names
from haltwise.processes import ProcessFamily, process_families
from haltwise.tasks import TaskFamily, families

__all__ = ["command"]


@click.command("list")
@click.argument("text", default="")
def command(text: str) -> None:
    """List the families and the shipped weights, those with TEXT in their names if it is given."""
    every: dict[str, TaskFamily | ProcessFamily] = {**families(), **process_families()}
    found = {name: family for name, family in every.items() if text in name}
    shipped = [name for name in names() if text in name]
    stops = [name for name in stop_names() if text in name]
    require(bool(found or shipped or stops), f"nothing has {text!r} in its name; see haltwise list")
    if found:
        click.echo("Families (haltwise train FAMILY), and how many parameters a problem has:")
        for sentence, members in _by_sentence(found).items():
            click.echo(textwrap.fill(sentence, 79, initial_indent="  ", subsequent_indent="  "))
            for name in members:
                family = found[name]
                size = "process" if isinstance(family, ProcessFamily) else f"{family.dim:>5}"
                click.echo(f"    {name:<{max(map(len, found))}}  {size}")
    for title, ships in (
        ("Shipped weights (haltwise evaluate NAME, haltwise.load(NAME)):", shipped),
        ("Shipped stops of engines (haltwise.solve(..., stop=NAME)):", stops),
    ):
        if ships:
            click.echo(title)
            _print_table([("name", "family", "steps", "price", "halting"), *map(_row, ships)])


def _print_table(table: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = " ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo(f"  {line}".rstrip())


def _by_sentence(found: dict[str, TaskFamily | ProcessFamily]) -> dict[str, list[str]]:
    """Names of families that one sentence describes, in order."""
    described: dict[str, list[str]] = {}
    for name in sorted(found):
        sentence = (type(found[name]).__doc__ or "").splitlines()[0]
        described.setdefault(sentence, []).append(name)
    return described


def _row(name: str) -> Sequence[str]:
    card = card_of(name)
    family = "recorded runs" if card.family is None else card.family.name
    return (name, family, str(card.horizon), f"{card.price:g}", card.method.name)
