"""`haltwise train-monitor`: from recorded runs of a loop to what stops it."""

import re
from pathlib import Path
from typing import Any

import click

from haltwise._core.errors import require
from haltwise.cli.options import json_option, threads_option
from haltwise.cli.places import PATH, PathType
from haltwise.cli.printing import print_stopping, say, write_json
from haltwise.cli.progress import run_trainer
from haltwise.cli.settings import SettingsCommand, setting_leaves
from haltwise.cli.train import command_line
from haltwise.evaluation import judge_runs
from haltwise.models.loading import load_halting
from haltwise.recordings.runs import RecordedRuns
from haltwise.report import write_stopping_report
from haltwise.training import Trainer, monitor_settings
from haltwise.training.presets import MONITOR_DEFAULTS

__all__ = ["command"]

_OUT = PathType(
    is_directory=True,
    files=(".lock", "best.safetensors", "checkpoints", "config.json", "log.jsonl", "report.html"),
    is_new=True,
)
_OPTIONS = re.compile(
    r"(halter|method|halter_from|price_range|adam|run|seed)(\..*)?"
    r"|halting\.(num_steps|batch_size|price_exponent)|validation\.every"
)


@click.command(
    "train-monitor",
    cls=SettingsCommand,
    leaves=lambda typed, _: setting_leaves(typed, MONITOR_DEFAULTS, _OPTIONS.fullmatch),
)
@click.argument("runs", type=PATH)
@click.option("--price", type=float, required=True, help="Price of a round, in units of the score.")
@click.option("--out", type=_OUT, help="Run directory.  [default: runs/RUNS-monitor]")
@click.option(
    "--horizon", type=int, help="Rounds after the first.  [default: those of the shortest run]"
)
@click.option("--keeps-best", is_flag=True, help="The loop goes back to its best state at the end.")
@click.option(
    "--test-runs",
    type=PATH,
    help="Other recorded runs, on which it is judged beside tuned rules, with a page.",
)
@json_option
@threads_option
def command(
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
    require(
        test_runs is None or test_runs.resolve() != runs.resolve(),
        f"--test-runs {test_runs} are the runs that it learns from, which would flatter it; record "
        "others to judge it on",
    )
    require(
        json_path is None or test_runs is not None,
        "--json writes how it is judged; give --test-runs, too",
    )
    directory = out or Path("runs") / f"{runs.resolve().name}-monitor"
    require(
        json_path is None or not _OUT.has(json_path, directory),
        f"--json {json_path} is a file that is written in {directory}, too; name another file",
    )
    page = directory / "report.html"
    require(
        test_runs is None or not page.exists(),
        f"{page} would be overwritten; move it or choose another --out",
    )
    chosen = monitor_settings(runs, price=price, horizon=horizon, keeps_best=keeps_best, **settings)
    test = None if test_runs is None else RecordedRuns.load(test_runs, chosen.horizon)
    run_trainer(Trainer(chosen, directory, command=command_line()))
    if test is not None and test_runs is not None:
        tuning = RecordedRuns.load(runs, chosen.horizon)
        record = judge_runs(load_halting(directory), test, tuning, price=price)
        print_stopping(record)
        write_json(json_path, record)
        title = f"{directory.name} on {test_runs.resolve().name}"
        say(write_stopping_report(record, page, title))
