"""`haltwise list`: what there is to train on and to use."""

import click

from haltwise.models.loading import card_of, names
from haltwise.tasks import families

__all__ = ["list_"]


@click.command("list")
def list_() -> None:
    """List the families and the shipped weights."""
    click.echo("Families (haltwise train FAMILY):")
    known = families()
    longest = max(map(len, known))
    width = max(len(str(family.dim)) for family in known.values())
    for name, family in known.items():
        click.echo(f"  {name:<{longest}} {family.dim:>{width}} parameters  {_first_line(family)}")
    click.echo("Shipped weights (haltwise evaluate NAME, haltwise.load(NAME)):")
    shipped = names()
    longest = max(map(len, shipped))
    for name in shipped:
        card = card_of(name)
        family = "recorded runs" if card.family is None else card.family.name
        click.echo(
            f"  {name:<{longest}} family {family}, {card.horizon} steps, "
            f"price {card.price:g} per step, halting {card.method.name}"
        )


def _first_line(family: object) -> str:
    return (type(family).__doc__ or "").strip().splitlines()[0]
