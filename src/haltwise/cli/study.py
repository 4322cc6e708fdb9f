"""`haltwise study`: stop rules over many seeds and prices."""

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from haltwise._core.errors import require
from haltwise.cli.options import (
    data_directory,
    device_option,
    family_name,
    family_of,
    family_settings,
    model_name,
    own_classes,
    threads_option,
)
from haltwise.cli.printing import print_table, write_json
from haltwise.evaluation import study as run_study
from haltwise.models import loading
from haltwise.report.studies import margins_table, study_table
from haltwise.stop_rules import CostUnit

__all__ = ["study"]


@click.command()
@click.argument("run_or_name")
@click.option(
    "--halter",
    "others",
    multiple=True,
    metavar="NAME=RUN",
    help="Compare with the halting model of RUN, trained for the same update rule; may be "
    "repeated.",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    help="Family to draw problems from; may be repeated, as many from each.  [default: the one "
    "trained on]",
)
@click.option(
    "--price",
    "prices",
    type=float,
    multiple=True,
    help="Price of a step, in units of the loss; may be repeated.  [default: the card's]",
)
@click.option("--horizon", type=int, help="Steps allowed.  [default: the card's]")
@click.option("--seeds", type=int, default=10, show_default=True, help="Number of seeds.")
@click.option("--first-seed", type=int, default=1000, show_default=True, help="The first seed.")
@click.option(
    "--num-problems",
    type=int,
    default=2048,
    show_default=True,
    help="Test problems of a seed; as many again for tuning.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here."
)
@own_classes
@family_settings
@data_directory
@device_option
@threads_option
def study(
    run_or_name: str,
    others: tuple[str, ...],
    families: tuple[str, ...],
    prices: tuple[float, ...],
    horizon: int | None,
    seeds: int,
    first_seed: int,
    num_problems: int,
    json_path: Path | None,
    own: list[type],
    data_dir: Path | None,
    device: torch.device,
    family_settings: dict[str, Any],
) -> None:
    """Compare stop rules on the trajectories of RUN_OR_NAME, over seeds and prices.

    Baselines and the learned rule's setting are tuned on separate problems of each seed. Written to
    RUN/study.json, the figures are shown by `haltwise report RUN`.
    """
    models = {model_name(run_or_name): loading.load(run_or_name, own)}
    card = models[model_name(run_or_name)].card
    for entry in others:
        name, equals, run = entry.partition("=")
        require(bool(equals) and bool(name), f"--halter takes NAME=RUN, got {entry!r}")
        require(name not in models, f"two models are called {name!r}; choose another NAME")
        models[name] = loading.load(run, own)
    with Console(stderr=True).status("starting") as status:
        record = run_study(
            models,
            {
                family_name(card, name): family_of(card, name, family_settings, data_dir)
                for name in families or (None,)
            },
            prices=prices or (card.price,),
            horizon=card.horizon if horizon is None else horizon,
            seeds=range(first_seed, first_seed + seeds),
            num_problems=num_problems,
            device=device,
            announce=status.update,
        )
    if json_path is not None:
        write_json(json_path, record)
    for unit in CostUnit:
        print_table(study_table(record, unit))
        print_table(margins_table(record, unit))
