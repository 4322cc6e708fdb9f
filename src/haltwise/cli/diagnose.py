"""`haltwise diagnose`: why does it not learn?"""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.files import write_atomically
from haltwise._core.json import to_json
from haltwise.cli.options import (
    data_directory,
    family_of,
    family_settings,
    own_classes,
    threads_option,
)
from haltwise.evaluation.diagnosis import diagnose as look_at
from haltwise.models import loading

__all__ = ["diagnose"]

_COORDINATES = 2**16  # of all problems together


@click.command()
@click.argument("run_or_name")
@click.option("--family", help="Family to draw problems from.  [default: the one trained on]")
@click.option("--price", type=float, help="Price of a step.  [default: the card's]")
@click.option("--horizon", type=int, help="Steps.  [default: the card's]")
@click.option("--num-problems", type=int, help="Problems.  [default: 128, for networks down to 8]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the problems.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here."
)
@own_classes
@family_settings
@data_directory
@threads_option
def diagnose(
    run_or_name: str,
    family: str | None,
    price: float | None,
    horizon: int | None,
    num_problems: int | None,
    seed: int,
    json_path: Path | None,
    own: list[type],
    data_dir: Path | None,
    family_settings: dict[str, Any],
) -> None:
    """Find out why RUN_OR_NAME does not learn, and what to do about it.

    Looks at scales of gradients and updates, gates, losses against the price, the halting posterior
    and what happens beyond the horizon, on problems that nothing was trained on.
    """
    model = loading.load(run_or_name, own)
    drawn = family_of(model.card, family, family_settings, data_dir)
    num = min(128, max(8, _COORDINATES // drawn.dim)) if num_problems is None else num_problems
    with Console(stderr=True).status("looking"):
        found = look_at(model, drawn, price=price, horizon=horizon, num_problems=num, seed=seed)
    if json_path is not None:
        write_atomically(json_path, (json.dumps(to_json(found), indent=1) + "\n").encode())
    for name, value in found.figures.items():
        click.echo(f"  {name}: {value:.3g}")
    for finding in found.findings:
        where = f" ({finding.where})" if finding.where else ""
        click.echo(f"{finding.name}{where}: {finding.measured} {finding.advice}")
    if not found.findings:
        click.echo("Nothing is wrong.")
