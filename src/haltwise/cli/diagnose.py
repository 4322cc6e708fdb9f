"""`haltwise diagnose`: why does it not learn?"""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.progress import working
from haltwise.cli import options
from haltwise.cli.printing import say, write_json
from haltwise.cli.settings import SettingsCommand
from haltwise.evaluation.diagnosis import diagnose as look_at
from haltwise.models import loading

__all__ = ["command"]

_COORDINATES = 2**16  # of all problems together


@click.command("diagnose", cls=SettingsCommand, leaves=options.family_leaves)
@click.argument("run_or_name")
@options.family_option
@options.price_option
@options.horizon_option
@click.option("--num-problems", type=int, help="Problems.  [default: 128, for networks down to 8]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the problems.")
@options.measuring_options
def command(
    run_or_name: str,
    family: str | None,
    price: float | None,
    horizon: int | None,
    num_problems: int | None,
    seed: int,
    json_path: Path | None,
    own: list[type],
    data_dir: Path | None,
    settings: dict[str, Any],
) -> None:
    """Find out why RUN_OR_NAME does not learn, and what to do about it.

    Looks at scales of gradients and updates, gates, losses against the price, the halting posterior
    and what happens beyond the horizon, on problems that nothing was trained on.
    """
    model = loading.load(run_or_name, own)
    drawn = options.family_of(model.card, family, settings, data_dir)
    num = min(128, max(8, _COORDINATES // drawn.dim)) if num_problems is None else num_problems
    with working("looking", Console(stderr=True)):
        found = look_at(model, drawn, price=price, horizon=horizon, num_problems=num, seed=seed)
    write_json(json_path, found)
    for name, value in found.figures.items():
        say(f"  {name}: {value:.3g}")
    for finding in found.findings:
        where = f" ({finding.where})" if finding.where else ""
        say(f"{finding.name}{where}: {finding.measured} {finding.advice}")
    if not found.findings:
        say("Nothing is wrong.")
