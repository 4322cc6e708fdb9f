"""`haltwise train-monitor`: from recorded runs of a loop to what stops it."""

from pathlib import Path
from typing import Any

import click

from haltwise.cli.options import threads_option
from haltwise.cli.printing import print_table, write_json
from haltwise.cli.progress import run_trainer
from haltwise.cli.settings import SettingsCommand
from haltwise.cli.train import command_line
from haltwise.evaluation import judge_runs
from haltwise.models.loading import load_halting
from haltwise.recordings.runs import RecordedRuns
from haltwise.report.stopping import rules_table, sentences
from haltwise.training import Trainer, monitor_settings
from haltwise.training.presets import MONITOR_DEFAULTS

__all__ = ["train_monitor"]


@click.command(
    "train-monitor",
    cls=SettingsCommand,
    sections=(
        *("halter", "method", "halter_from", "price_range", "halting.num_steps"),
        *(
            "halting.batch_size",
            "halting.price_exponent",
            "adam",
            "validation.every",
            "run",
            "seed",
        ),
    ),
    below=lambda _: MONITOR_DEFAULTS,
)
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--price", type=float, required=True, help="Price of a round, in units of the score.")
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
@threads_option
def train_monitor(
    settings: dict[str, Any],
    runs: Path,
    price: float,
    out: Path | None,
    horizon: int | None,
    keeps_best: bool,
    test_runs: Path | None,
    json_path: Path | None,
) -> None:
    """Learn from the recordings in the directory RUNS when to stop such a loop.

    haltwise.HaltingMonitor.recording writes them, haltwise.HaltingMonitor stops by what is learned.
    """
    chosen = monitor_settings(runs, price=price, horizon=horizon, keeps_best=keeps_best, **settings)
    test = None if test_runs is None else RecordedRuns.load(test_runs, chosen.horizon)
    directory = out or Path("runs") / f"{runs.resolve().name}-monitor"
    run_trainer(Trainer(chosen, directory, command=command_line()))
    if test is not None:
        tuning = RecordedRuns.load(runs, chosen.horizon)
        record = judge_runs(load_halting(directory), test, tuning, price=price)
        print_table(rules_table(record, wide=False))
        click.echo(" ".join(sentences(record)[:3]))
        if json_path is not None:
            write_json(json_path, record)
