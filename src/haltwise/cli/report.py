"""`haltwise report`: one self-contained page of what a run learned and how it was judged."""

from pathlib import Path

import click

from haltwise import report as pages
from haltwise.cli.options import own_classes
from haltwise.models import loading

__all__ = ["report"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page.  [default: RUN/report.html]"
)
@own_classes
def report(run: Path, out: Path | None, own: list[type]) -> None:
    """Write an HTML report of the evaluations in the directory RUN."""
    run = loading.run_directory(run)
    click.echo(str(pages.write_report(run, out or run / "report.html", own)))
