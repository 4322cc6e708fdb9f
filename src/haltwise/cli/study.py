"""`haltwise study`: stop rules over many seeds and prices."""

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.progress import working
from haltwise.cli import options
from haltwise.cli.printing import print_table, say, write_json
from haltwise.cli.settings import SettingsCommand
from haltwise.evaluation import study
from haltwise.models import loading
from haltwise.report.studies import margins_table, study_section, study_table
from haltwise.stop_rules import CostUnit
from haltwise.tasks.base import TaskFamily

__all__ = ["command"]


@click.command("study", cls=SettingsCommand, leaves=options.family_leaves)
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
    help="Family to draw problems from; may be repeated, as many from each. --family.NAME VALUE "
    "changes a setting.  [default: the one trained on]",
)
@click.option(
    "--price",
    "prices",
    type=float,
    multiple=True,
    help="Price of a step, in units of the loss; may be repeated.  [default: the card's]",
)
@options.horizon_option
@click.option("--seeds", default=10, show_default=True, help="Number of seeds.")
@click.option("--first-seed", default=1000, show_default=True, help="The first seed.")
@click.option(
    "--num-problems",
    default=2048,
    show_default=True,
    help="Test problems of a seed; as many again for tuning.",
)
@options.learners_option(default=False)
@options.device_option
@options.measuring_options
def command(
    run_or_name: str,
    others: tuple[str, ...],
    families: tuple[str, ...],
    prices: tuple[float, ...],
    horizon: int | None,
    seeds: int,
    first_seed: int,
    num_problems: int,
    learners: bool,
    json_path: Path | None,
    own: list[type],
    data_dir: Path | None,
    device: torch.device,
    settings: dict[str, Any],
) -> None:
    """Compare stop rules on the trajectories of RUN_OR_NAME, over seeds and prices.

    Baselines and the learned rule's setting are tuned on separate problems of each seed. Written to
    RUN/study.json, the figures are shown by `haltwise report RUN`.
    """
    models = {options.model_name(run_or_name): loading.load(run_or_name, own)}
    (card,) = (model.card for model in models.values())
    for entry in others:
        name, equals, run = entry.partition("=")
        require(bool(equals) and bool(name), f"--halter takes NAME=RUN, got {entry!r}")
        require(name not in models, f"two models are called {name!r}; choose another NAME")
        models[name] = loading.load(run, own)
    drawn: dict[str, TaskFamily] = {}
    for each in families or (None,):
        label = options.family_name(card, each)
        require(label not in drawn, f"two families are called {label!r}; name each once")
        drawn[label] = options.family_of(card, each, settings, data_dir)
    with working("starting", Console(stderr=True)) as announce:
        record = study(
            models,
            drawn,
            prices=prices or (card.price,),
            horizon=card.horizon if horizon is None else horizon,
            seeds=range(first_seed, first_seed + seeds),
            num_problems=num_problems,
            device=device,
            announce=announce,
            learners=learners,
        )
    write_json(json_path, record)
    for warning in study_section(record).warnings:
        say(f"Warning: {warning}")
    for unit in CostUnit:
        print_table(study_table(record, unit))
        print_table(margins_table(record, unit))
