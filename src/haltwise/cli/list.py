"""`haltwise list`: the families to train on and the shipped weights."""

from collections.abc import Sequence

import click

from haltwise.models.loading import card_of, names
from haltwise.tasks import families

__all__ = ["list_"]


@click.command("list")
def list_() -> None:
    """List the families and the shipped weights."""
    click.echo("Families (haltwise train FAMILY):")
    described: dict[str, list[Sequence[str]]] = {}
    for name, family in families().items():
        rows = described.setdefault(_first_line(family), [])
        rows.append((name, f"{family.dim} parameters"))
    width = max(len(name) for rows in described.values() for name, _ in rows)
    for description, rows in described.items():
        click.echo(f"  {description}")
        for name, size in rows:
            click.echo(f"    {name:<{width}}  {size:>16}")
    click.echo("Shipped weights (haltwise evaluate NAME, haltwise.load(NAME)):")
    _echo_table([("name", "family", "steps", "price", "halting"), *map(_row, names())])


def _row(name: str) -> Sequence[str]:
    card = card_of(name)
    family = "recorded runs" if card.family is None else card.family.name
    return (name, family, str(card.horizon), f"{card.price:g}", card.method.name)


def _echo_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo(f"  {line}".rstrip())


def _first_line(family: object) -> str:
    return (type(family).__doc__ or "").strip().splitlines()[0]
