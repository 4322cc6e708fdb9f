"""`haltwise train-monitor`: from recorded runs of a loop to what stops it."""

from pathlib import Path
from typing import Any

import click

from haltwise.cli.options import threads_option
from haltwise.cli.printing import print_table, write_json
from haltwise.cli.settings import SettingsCommand, collect
from haltwise.cli.train import TABLES, command_line, run_trainer
from haltwise.evaluation import judge_runs
from haltwise.models.loading import load_halting
from haltwise.recordings.runs import RecordedRuns
from haltwise.report.tables import rules_table
from haltwise.report.words import describe
from haltwise.training import Trainer, TrainingSettings, monitor_settings
from haltwise.training.train import MONITOR_DEFAULTS

__all__ = ["train_monitor"]


@click.command(
    "train-monitor",
    cls=SettingsCommand,
    settings=TrainingSettings,
    defaults=lambda family, preset: MONITOR_DEFAULTS,
    tables={"method": TABLES["method"]},
    excluded=(
        *("family", "mixed_with", "preset", "runs", "keeps_best", "rule", "rule_from", "price"),
        *("horizon", "joint.num_steps", "joint.batch_size", "joint.warmup", "joint.sum_weight"),
        "joint.estimator",
    ),
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
    runs: Path,
    price: float,
    out: Path | None,
    horizon: int | None,
    keeps_best: bool,
    test_runs: Path | None,
    json_path: Path | None,
    **arguments: Any,
) -> None:
    """Learn from the recordings in the directory RUNS when to stop such a loop.

    haltwise.HaltingMonitor.recording writes them, haltwise.HaltingMonitor stops by what is learned.
    """
    changes, _ = collect(arguments, ("method",))
    settings = monitor_settings(
        runs, price=price, horizon=horizon, keeps_best=keeps_best, **changes
    )
    test = None if test_runs is None else RecordedRuns.load(test_runs, settings.horizon)
    directory = out or Path("runs") / f"{runs.resolve().name}-monitor"
    run_trainer(Trainer(settings, directory, command=command_line()))
    if test is not None:
        tuning = RecordedRuns.load(runs, settings.horizon)
        record = judge_runs(load_halting(directory), test, tuning, price=price)
        print_table(rules_table(record, wide=False))
        click.echo(" ".join(describe(record)[:3]))
        if json_path is not None:
            write_json(json_path, record)
