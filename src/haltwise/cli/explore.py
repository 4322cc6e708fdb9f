"""`haltwise explore`: see a problem being solved, with a slider for the price."""

from pathlib import Path
from typing import Any

import click

from haltwise import report
from haltwise.cli import options
from haltwise.cli.places import PAGE
from haltwise.cli.printing import say
from haltwise.cli.settings import SettingsCommand
from haltwise.models import loading

__all__ = ["command"]


@click.command("explore", cls=SettingsCommand, leaves=options.family_leaves)
@click.argument("run_or_name", default="regression-2d")
@options.family_option
@click.option("--seed", type=int, default=2026, show_default=True, help="Seed of the problems.")
@click.option("--num-problems", default=5, show_default=True, help="Problems to choose from.")
@options.horizon_option
@click.option("--out", type=PAGE, default="explore.html", show_default=True, help="The page.")
@options.own_classes
@options.data_directory
def command(
    run_or_name: str,
    family: str | None,
    seed: int,
    num_problems: int,
    horizon: int | None,
    out: Path,
    own: list[type],
    data_dir: Path | None,
    settings: dict[str, Any],
) -> None:
    """Write a page on which problems with two parameters are solved by RUN_OR_NAME.

    Contours and path, q(t|x,T), hazard and forecast as the steps advance, and where and why it
    would have stopped at any price.
    """
    model = loading.load(run_or_name, own)
    page = report.write_explorer(
        model,
        options.family_of(model.card, family, settings, data_dir),
        out,
        name=options.model_name(run_or_name),
        family_name=options.family_name(model.card, family),
        seed=seed,
        num_problems=num_problems,
        num_steps=horizon,
    )
    say(page)
