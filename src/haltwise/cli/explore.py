"""`haltwise explore`: see a problem being solved, with a slider for the price."""

from pathlib import Path
from typing import Any

import click

from haltwise import report as pages
from haltwise import tasks
from haltwise._core.errors import InputError
from haltwise._core.plugins import label
from haltwise.cli.options import family_settings as family_settings_option
from haltwise.cli.options import own_of
from haltwise.models import loading
from haltwise.models.card import Choice

__all__ = ["explore"]


@click.command()
@click.argument("run_or_name", default="regression-2d")
@click.option("--family", help="Family to draw problems from.  [default: the one trained on]")
@click.option("--seed", type=int, default=2026, show_default=True, help="Of the problems.")
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
@family_settings_option
def explore(
    run_or_name: str,
    family: str | None,
    seed: int,
    num_problems: int,
    horizon: int | None,
    out: Path,
    family_settings: dict[str, Any],
) -> None:
    """Write a page on which problems are solved by RUN_OR_NAME.

    Loss, halting posterior, hazard and forecast as the steps advance, contours and path where a
    problem has two parameters, and where it would have stopped at any price.
    """
    model = loading.load(run_or_name, own_of(run_or_name))
    drawn = model.card.family if family is None else Choice(family)
    if drawn is None:
        raise InputError(
            f"{run_or_name} was trained on recorded runs; say by --family what problems to draw"
        )
    page = pages.write_explorer(
        model,
        tasks.family(drawn.name, {**drawn.settings, **family_settings}),
        out,
        name=Path(run_or_name).name,
        family_name=label(drawn.name),
        seed=seed,
        num_problems=num_problems,
        num_steps=horizon,
    )
    click.echo(str(page))
