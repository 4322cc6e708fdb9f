"""`haltwise report`: one self-contained page of what a run learned and how it was judged."""

import shlex
from pathlib import Path

import click

from haltwise._core.errors import require
from haltwise.cli.options import own_classes
from haltwise.cli.places import PAGE, PATH
from haltwise.cli.printing import say
from haltwise.curves.shipped import is_curve_model
from haltwise.models.files import read_card
from haltwise.models.loading import run_directory
from haltwise.report import write_report

__all__ = ["command"]


@click.command("report")
@click.argument("run", type=PATH)
@click.option("--out", type=PAGE, help="The page.  [default: RUN/report.html]")
@own_classes
def command(run: Path, out: Path | None, own: list[type]) -> None:
    """Write an HTML report of the evaluations in the directory RUN."""
    run = run_directory(run)
    quoted = shlex.quote(str(run))
    require(
        not is_curve_model(run),
        f"{run} holds what `haltwise learn` has learned, which wrote a page there; write one of "
        f"other runs by `haltwise replay FILE --model {quoted}`",
    )
    weights = run / "best.safetensors"
    card = read_card(weights, own) if weights.exists() else None
    require(
        card is None or card.rule is not None or card.family is None,
        f"{run} stops processes, of which no evaluations are kept; write the figures by `haltwise "
        f"evaluate {quoted} --json FILE`, or a page of any stops by `haltwise stopping-report`",
    )
    require(
        card is None or any((card.rule, card.family, card.engine)),
        f"{run} stops a loop of yours, of which no evaluations are kept; write a page of its stops "
        f"by `haltwise judge {quoted} RECORDINGS --html PAGE`",
    )
    say(write_report(run, out or run / "report.html", own))
