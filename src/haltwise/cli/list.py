"""`haltwise list`: what there is to train on and to use."""

import click

from haltwise.models import loading
from haltwise.tasks import families

__all__ = ["list_"]


@click.command("list")
def list_() -> None:
    """List the families and the shipped optimizers."""
    click.echo("Families (haltwise train FAMILY):")
    known = families()
    longest = max(map(len, known))
    width = max(len(str(family.dim)) for family in known.values())
    for name, family in known.items():
        click.echo(f"  {name:<{longest}} {family.dim:>{width}} parameters  {_first_line(family)}")
    click.echo("Shipped optimizers (haltwise evaluate NAME, haltwise.load(NAME)):")
    shipped = loading.names()
    longest = max(map(len, shipped))
    for name in shipped:
        config = loading.read_card(name)["config"]
        click.echo(
            f"  {name:<{longest}} family {config['family']}, {config['horizon']} steps, "
            f"price {config['price']:g} per step, preset {config['preset']}"
        )


def _first_line(family: object) -> str:
    return (type(family).__doc__ or "").strip().splitlines()[0]
