"""`haltwise recommend`: which optimizer to use on a family of problems."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.progress import working
from haltwise.cli import options
from haltwise.cli.printing import print_table, say, write_json
from haltwise.cli.settings import SettingsCommand
from haltwise.evaluation import Recommendation, recommend
from haltwise.report.formats import counted, num, percent
from haltwise.report.page import Column, Table
from haltwise.tasks import family as make_family

__all__ = ["command"]


@click.command("recommend", cls=SettingsCommand, leaves=options.family_leaves)
@click.argument("family")
@click.option(
    "--optimizer",
    "optimizers",
    multiple=True,
    help="A name, a run or a weights file to try; may be repeated.  [default: all that ship]",
)
@click.option(
    "--price",
    type=float,
    help="Price of a gradient, in units of the loss.  [default: a 500th of what there is to gain]",
)
@click.option("--max-steps", type=int, default=100, show_default=True, help="Gradients at most.")
@click.option(
    "--num-problems",
    type=int,
    help="Problems of the sample; half are for tuning.  [default: 128, fewer of networks]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the problems.")
@options.json_option
@options.data_directory
@options.threads_option
def command(
    family: str,
    optimizers: tuple[str, ...],
    price: float | None,
    max_steps: int,
    num_problems: int | None,
    seed: int,
    json_path: Path | None,
    data_dir: Path | None,
    settings: dict[str, Any],
) -> None:
    """Try what ships on problems of FAMILY beside Adam and L-BFGS, and say what to use.

    FAMILY is a name that `haltwise list` shows, or PATH.py:NAME, a file of yours that is executed;
    --family.NAME VALUE changes a setting of it. The optimizer of lowest J, the loss at the stop
    plus price times gradients, is recommended, of those with weights only if they fit.
    """
    changed = settings.get("family", {}).get("settings", {})
    drawn = make_family(family, changed, data_dir=data_dir)
    with working("trying", Console(stderr=True)):
        found = recommend(
            drawn,
            optimizers or None,
            price=price,
            max_steps=max_steps,
            num_problems=num_problems,
            seed=seed,
        )
    write_json(json_path, found)
    print_table(_table(found))
    say(found.sentence)


def _table(found: Recommendation) -> Table:
    others = counted(found.num_tuning, "other") if found.num_tuning else "the same"
    return Table(
        "recommendation",
        "Optimizers on these problems",
        [
            Column("optimizer", str),
            Column("J", num),
            Column("loss", num),
            Column("gradients", num),
            Column("seconds", num),
            Column("handed over", percent),
            Column("fits", lambda fits: "yes" if fits else "no"),
        ],
        [
            [
                trial.name,
                trial.j,
                trial.loss,
                trial.num_gradients,
                trial.seconds,
                trial.handed_over,
                trial.fits,
            ]
            for trial in found.trials
        ],
        note=f"On {counted(found.num_judged, 'problem')} at a price of {num(found.price)} a "
        f"gradient; Adam was tuned on {others}. What was handed over L-BFGS finished. Cannot take "
        f"these problems: {', '.join(found.skipped) or 'none'}.",
        strong=next((i for i, each in enumerate(found.trials) if each.name == found.use), None),
    )
