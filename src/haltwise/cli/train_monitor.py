"""`haltwise train-monitor`: from recorded runs of somebody's loop to what stops it."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from haltwise.models import loading
from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise.cli.options import parse_settings
from haltwise.cli.train import run_trainer
from haltwise.evaluation import study_runs
from haltwise.recordings.runs import RecordedRuns
from haltwise.training import Trainer, monitor_config

__all__ = ["train_monitor"]


@click.command("train-monitor")
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--price", type=float, required=True, help="Of a round, in units of the score.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/RUNS-monitor]"
)
@click.option(
    "--horizon", type=int, help="Rounds after the first.  [default: those of the shortest run]"
)
@click.option("--keeps-best", is_flag=True, help="The loop goes back to its best state at the end.")
@click.option(
    "--test-runs",
    type=click.Path(path_type=Path),
    help="Other recorded runs, on which it is judged beside tuned rules.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures here.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and the split.")
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=JSON",
    help="Any other setting of the configuration, e.g. --set head_steps=3000.",
)
def train_monitor(
    runs: Path,
    price: float,
    out: Path | None,
    horizon: int | None,
    keeps_best: bool,
    test_runs: Path | None,
    json_path: Path | None,
    seed: int,
    threads: int | None,
    settings: tuple[str, ...],
) -> None:
    """Learn from the recordings in the directory RUNS when to stop such a loop.

    haltwise.HaltingMonitor.recording writes them, haltwise.HaltingMonitor stops by what is learned.
    """
    if threads is not None:
        require(threads >= 1, f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    config = monitor_config(
        runs,
        price=price,
        horizon=horizon,
        keeps_best=keeps_best,
        seed=seed,
        **parse_settings(settings),
    )
    test = None if test_runs is None else RecordedRuns.load(test_runs, config.horizon)
    directory = out or Path("runs") / f"{runs.resolve().name}-monitor"
    command = shlex.join(["haltwise", *sys.argv[1:]])
    run_trainer(Trainer(config, directory, command=command))
    if test is not None:
        tuning = RecordedRuns.load(runs, config.horizon)
        found = study_runs(loading.load(directory), test, tuning, price=price)
        Console().print(_table(found))
        if json_path is not None:
            write_atomically(json_path, (json.dumps(found, indent=1) + "\n").encode())


def _table(found: dict[str, Any]) -> Table:
    table = Table(
        title=f"{found['num_runs']} test runs: price {found['price']:g} per round",
        title_justify="left",
        caption="J: score + price x rounds. gain: 1 is the oracle, 0 the best fixed budget. more "
        "than learned: J less that of the learned rule, 95 % interval",
        caption_justify="left",
    )
    table.add_column("stop rule")
    for name in ("J", "gain", "more than learned"):
        table.add_column(name, justify="right")
    named = {"rule": "learned", "rule_calibrated": "learned, calibrated like the others"}
    for name, j in sorted(found["j"].items(), key=lambda item: item[1]):
        gain = found["captured_gain"].get(name)
        more = found["difference"].get(name)
        table.add_row(
            named.get(name, name.replace("_", " ")),
            f"{j:.4g}",
            "" if gain is None else f"{gain:.3f}",
            f"{more['value']:.3g} [{more['low']:.3g}, {more['high']:.3g}]" if more else "",
            style="bold" if name == "rule" else None,
        )
    return table
