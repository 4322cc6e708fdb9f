"""`haltwise study`: stop rules over many seeds and prices."""

import json
from pathlib import Path
from typing import Any

import click
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise.cli.options import data_directory, device_option, families_of
from haltwise.cli.options import family_settings as family_settings_option
from haltwise.evaluation import CostUnit, study_heads, study_stopping
from haltwise.models import loading
from haltwise.tasks import label

__all__ = ["study"]


@click.command()
@click.argument("run_or_name")
@click.option(
    "--head",
    "others",
    multiple=True,
    metavar="NAME=RUN",
    help="Compare with the halting head of RUN, trained for the same rule; may be repeated.",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    help="Family to draw problems from; may be repeated, as many from each.  [default: what it was "
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
@click.option("--first-seed", type=int, default=1000, show_default=True, help="They count from it.")
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
@family_settings_option
@data_directory
@device_option
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
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
    device: torch.device,
    threads: int | None,
    family_settings: dict[str, Any],
) -> None:
    """Compare stop rules on the trajectories of RUN_OR_NAME, over seeds and prices.

    Opponents and the learned rule's threshold are tuned on separate problems of each seed. With
    --head, heads are compared instead, each calibrated likewise; written to RUN/heads.json, they
    are shown by `haltwise report RUN`.
    """
    if threads is not None:
        require(threads >= 1, f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    optimizer = loading.load(run_or_name)
    config = optimizer.card["config"]
    require(
        config["posterior"] != "none",
        f"{run_or_name} has no trained halting head (preset {config['preset']}); study a "
        "self-stopping optimizer",
    )
    heads = {Path(run_or_name).name: optimizer}
    for entry in others:
        name, equals, run = entry.partition("=")
        require(bool(equals) and bool(name), f"--head takes NAME=RUN, got {entry!r}")
        require(name not in heads, f"two heads are called {name!r}; choose another NAME in --head")
        heads[name] = loading.load(run)
    named = families or (config["family"], *config.get("mixed_with", ()))
    names = [label(name) for name in named]
    with Console(stderr=True).status("starting") as status:
        arguments: dict[str, Any] = {
            "families": families_of(config, families, family_settings),
            "prices": prices or (config["price"],),
            "horizon": config["horizon"] if horizon is None else horizon,
            "seeds": range(first_seed, first_seed + seeds),
            "num_problems": num_problems,
            "device": device,
            "announce": status.update,
        }
        results = (
            study_heads(heads, **arguments) if others else study_stopping(optimizer, **arguments)
        )
    document = {
        "optimizer": Path(run_or_name).name,
        "family": " + ".join(names),
        "results": results,
    }
    if json_path is not None:
        write_atomically(json_path, (json.dumps(document, indent=1) + "\n").encode())
    for account in CostUnit:
        Console().print((_heads_table if others else _table)(document, account.value))


def _heads_table(document: dict[str, Any], account: str) -> Table:
    """Captured gain of every head, a column a price."""
    results = [result for result in document["results"] if result["account"] == account]
    table = Table(
        title=f"Heads on {document['family']}: captured gain, cost counted in {account}",
        title_justify="left",
        caption="mean ± sd over seeds; 1 is the oracle, 0 the best fixed budget",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("head")
    for result in results:
        table.add_column(f"price {result['price']:g}", justify="right")
    for name in results[0]["heads"]:
        gains = [_gain(result["heads"][name]["captured_gain"]) for result in results]
        table.add_row(name, *gains)
    return table


def _table(document: dict[str, Any], account: str) -> Table:
    """Captured gain of the learned rule and of its strongest opponent; fits 80 columns."""
    table = Table(
        title=f"{document['optimizer']} on {document['family']}: captured gain, cost counted in "
        f"{account}",
        title_justify="left",
        caption="mean ± sd over seeds; 1 is the oracle, 0 the best fixed budget. margin: J of the "
        "best tuned opponent less J of the calibrated rule, with its 95 % interval over seeds",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("price")
    for name in ("trained", "calibrated", "best opponent", "margin", "failed"):
        table.add_column(name, justify="right")
    for result in document["results"]:
        if result["account"] != account:
            continue
        gains, margin = result["captured_gain"], result["margin"]
        best = result["best_opponent"]
        table.add_row(
            f"{result['price']:g}",
            _number(gains["rule"]["mean"]),
            _gain(gains[result["learned"]]),
            f"{_gain(gains[best])}\n{best.replace('_', ' ')}",
            f"{margin['value']:.3g}\n[{margin['low']:.3g}, {margin['high']:.3g}]",
            f"{len(result['failures'])} of {len(result['seeds'])}",
        )
    return table


def _gain(figures: dict[str, Any]) -> str:
    return f"{_number(figures['mean'])} ± {_number(figures['sd'])}"


def _number(value: float | None) -> str:
    """None where stopping at one step is best for every problem, so that nothing can be gained."""
    return "-" if value is None else f"{value:.3f}"
