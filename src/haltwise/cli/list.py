"""`haltwise list`: the families to train on and the shipped weights."""

from collections.abc import Sequence

import click

from haltwise.models.loading import card_of, names
from haltwise.tasks import families

__all__ = ["command"]


@click.command("list")
def command() -> None:
    """List the families and the shipped weights."""
    click.echo("Families (haltwise train FAMILY):")
    described: dict[str, list[str]] = {}
    for name, family in families().items():
        row = f"    {name:<{max(map(len, families()))}}  {family.dim:>5} parameters"
        described.setdefault((type(family).__doc__ or "").splitlines()[0], []).append(row)
    for description, rows in described.items():
        click.echo("\n".join((f"  {description}", *rows)))
    click.echo("Shipped weights (haltwise evaluate NAME, haltwise.load(NAME)):")
    table = [("name", "family", "steps", "price", "halting"), *map(_row, names())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo(f"  {line}".rstrip())


def _row(name: str) -> Sequence[str]:
    card = card_of(name)
    family = "recorded runs" if card.family is None else card.family.name
    return (name, family, str(card.horizon), f"{card.price:g}", card.method.name)
