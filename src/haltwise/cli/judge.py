"""`haltwise judge`: judge a model that gives runs up on runs that it has not seen."""

from pathlib import Path
from typing import Any

import click

from haltwise.cli import options
from haltwise.cli.curve_options import curve_options, read_curves
from haltwise.cli.printing import print_table, write_json
from haltwise.curves.shipped import load_curve_model
from haltwise.evaluation.give_up import judge_curves
from haltwise.report.give_up import levels_table

__all__ = ["command"]


@click.command("judge")
@click.argument("model")
@click.argument("file")
@curve_options
@options.json_option
@options.data_directory
@options.threads_option
def command(
    model: str,
    file: str,
    reading: dict[str, Any],
    json_path: Path | None,
    data_dir: Path | None,
) -> None:
    """Judge MODEL on the recorded runs in FILE, at the levels that it remembers.

    MODEL is `training-runs`, which comes with the package, a directory that `haltwise learn` wrote,
    or a weights file. FILE is a file or a folder of any format that `haltwise learn` takes.
    """
    record = judge_curves(load_curve_model(model), read_curves(file, reading, data_dir))
    write_json(json_path, record.to_json())
    print_table(levels_table(record))
