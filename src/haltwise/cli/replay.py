"""`haltwise replay`: recorded runs, and where each would have been stopped at any price."""

from pathlib import Path
from typing import Any

import click

from haltwise import report
from haltwise._core.errors import require
from haltwise.cli import options
from haltwise.cli.curve_options import curve_options, given_options, learned_on, read_curves
from haltwise.cli.places import PAGE
from haltwise.cli.printing import say
from haltwise.curves.learning import with_room
from haltwise.curves.shipped import PRETRAINED, is_curve_model, load_curve_model
from haltwise.evaluation.give_up import with_targets
from haltwise.models.loading import load_halting
from haltwise.recordings.runs import RecordedRuns

__all__ = ["command"]


@click.command("replay")
@click.argument("runs")
@click.option(
    "--model",
    default=PRETRAINED,
    show_default=True,
    help="What stops them: a directory that `haltwise learn` or `haltwise train-monitor` wrote.",
)
@click.option(
    "--num-runs", default=12, show_default=True, help="Runs to choose from, spread over all."
)
@click.option("--out", type=PAGE, default="replay.html", show_default=True, help="The page.")
@curve_options
@options.curves_directory
@options.threads_option
def command(
    runs: str,
    reading: dict[str, Any],
    model: str,
    num_runs: int,
    out: Path,
    data_dir: Path | None,
) -> None:
    """Write a page with a slider for the price on which the recorded RUNS are stopped.

    The curve, what was forecast at each point, and where the run would have ended. RUNS is a file
    or a folder of any format that `haltwise learn` takes; for a monitor, the directory of what
    haltwise.HaltingMonitor.recording wrote.
    """
    name, runs_name = options.model_name(model), Path(runs).resolve().name
    if is_curve_model(model):
        rule = load_curve_model(model)
        like = learned_on(model, rule)
        curves = with_room(with_targets(read_curves(runs, reading, data_dir, like)))
        page = report.write_replay(
            rule, curves, out, name=name, runs_name=runs_name, num_runs=num_runs
        )
        say(page)
        return
    given = given_options(reading)
    require(
        not given,
        f"{' and '.join(given)} say how curves are read; a monitor has recordings of its own form",
    )
    halting = load_halting(model)
    require(
        halting.card.family is None,
        f"{model} was trained on problems, not on recorded runs; see it by haltwise explore "
        f"{model}",
    )
    recorded = RecordedRuns.load(runs, halting.card.horizon)
    if halting.card.keeps_best:
        recorded = recorded.keeping_best()
    page = report.write_run_explorer(
        halting,
        recorded.trajectory,
        out,
        name=name,
        runs_name=runs_name,
        maximizes=recorded.maximizes,
        num_runs=num_runs,
    )
    say(page)
