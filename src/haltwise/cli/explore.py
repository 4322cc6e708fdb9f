"""`haltwise explore`: see a problem being solved, with a slider for the price."""

from pathlib import Path
from typing import Any

import click

from haltwise import report as pages
from haltwise.cli.options import (
    data_directory,
    family_name,
    family_of,
    family_settings,
    model_name,
    own_classes,
)
from haltwise.models import loading

__all__ = ["explore"]


@click.command()
@click.argument("run_or_name", default="regression-2d")
@click.option("--family", help="Family to draw problems from.  [default: the one trained on]")
@click.option("--seed", type=int, default=2026, show_default=True, help="Seed of the problems.")
@click.option(
    "--num-problems", type=int, default=5, show_default=True, help="Problems to choose from."
)
@click.option("--horizon", type=int, help="Steps drawn.  [default: the card's]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("explore.html"),
    show_default=True,
    help="The page.",
)
@own_classes
@family_settings
@data_directory
def explore(
    run_or_name: str,
    family: str | None,
    seed: int,
    num_problems: int,
    horizon: int | None,
    out: Path,
    own: list[type],
    data_dir: Path | None,
    family_settings: dict[str, Any],
) -> None:
    """Write a page on which problems with two parameters are solved by RUN_OR_NAME.

    Contours and path, q(t|x,T), hazard and forecast as the steps advance, and where and why it
    would have stopped at any price.
    """
    model = loading.load(run_or_name, own)
    drawn = family_of(model.card, family, family_settings, data_dir)
    page = pages.write_explorer(
        model,
        drawn,
        out,
        name=model_name(run_or_name),
        family_name=family_name(model.card, family),
        seed=seed,
        num_problems=num_problems,
        num_steps=horizon,
    )
    click.echo(str(page))
