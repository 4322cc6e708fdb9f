"""`haltwise report`: one self-contained page of what a run learned and how it was judged."""

from pathlib import Path

import click

from haltwise.cli.options import PATH, WRITTEN, own_classes
from haltwise.cli.printing import say
from haltwise.models.loading import run_directory
from haltwise.report import write_report

__all__ = ["command"]


@click.command("report")
@click.argument("run", type=PATH)
@click.option("--out", type=WRITTEN, help="The page.  [default: RUN/report.html]")
@own_classes
def command(run: Path, out: Path | None, own: list[type]) -> None:
    """Write an HTML report of the evaluations in the directory RUN."""
    run = run_directory(run)
    say(write_report(run, out or run / "report.html", own))
