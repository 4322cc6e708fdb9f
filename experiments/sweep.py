"""Train once for every seed and price, several trainings at a time.

    python experiments/sweep.py regression-2d --seeds 0..9 --jobs 2 --joint.num-steps 500

OPTIONS are those of `haltwise train`. Every training is a process of its own: one that fails is
reported and hurts no other. Repeat the command to go on with what was interrupted or failed; what
is done is not done again. Ended by a signal, the sweep ends its trainings, which leave checkpoints.
"""

import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
from children import Children
from rich.console import Console
from rich.table import Table

from haltwise._core.errors import InputError, require
from haltwise._core.files import make_directory, write_atomically
from haltwise._core.plugins import label
from haltwise.cli import main
from haltwise.cli.printing import plain
from haltwise.models.loading import card_of


class Job(NamedTuple):
    """One training."""

    name: str
    """Name of its directory."""
    arguments: list[str]
    """Arguments of `haltwise` without those that every job gets."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("family")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--seeds", default="0", show_default=True, help="Seeds: 0,3,5 or a range such as 0..9."
)
@click.option("--prices", metavar="C,C,...", help="Prices of a step.  [default: the family's]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Holds the runs.  [default: runs/FAMILY-sweep]"
)
@click.option("--jobs", default=1, show_default=True, help="Trainings at a time, a thread each.")
def sweep(
    family: str,
    options: tuple[str, ...],
    seeds: str,
    prices: str | None,
    out: Path | None,
    jobs: int,
) -> None:
    """Train on FAMILY once for every seed and price; OPTIONS are those of `haltwise train`."""
    require(jobs >= 1, f"--jobs must be at least 1, got {jobs}")
    names = {option.partition("=")[0] for option in options}
    taken = {"--out", "--seed", "--price", "--resume", "--continue"} & names
    require(not taken, f"a sweep sets {', '.join(sorted(taken))} itself; drop it")
    directory = out or Path("runs") / f"{label(family)}-sweep"
    todo = [
        Job(
            f"seed-{seed}" + (f"-price-{price:g}" if price is not None else ""),
            [
                *("train", family, *options, "--seed", str(seed)),
                *(("--price", repr(price)) if price is not None else ()),
            ],
        )
        for seed, price in itertools.product(_seeds(seeds), _prices(prices))
    ]
    make_directory(directory)
    trainings = Children()
    with (
        Console(stderr=True).status(f"{len(todo)} trainings, {jobs} at a time"),
        ThreadPoolExecutor(jobs) as pool,  # the threads only wait
        trainings.guarded(),
    ):
        results = list(pool.map(lambda job: _run(job, directory, trainings), todo))
    document = {"family": family, "options": list(options), "runs": results}
    write_atomically(directory / "sweep.json", (json.dumps(document, indent=1) + "\n").encode())
    Console().print(_table(family, results))
    click.echo(str(directory))
    failed = [result["name"] for result in results if result["error"] is not None]
    require(not failed, f"{len(failed)} of {len(todo)} trainings failed: {', '.join(failed)}")


def _run(job: Job, directory: Path, trainings: Children) -> dict[str, Any]:
    """Train in a process of its own: name, command, metrics and what went wrong."""
    run = directory / job.name
    command = [*job.arguments, "--continue", "--out", str(run)]
    command += [] if "--threads" in job.arguments else ["--threads", "1"]
    returncode, errors = trainings.run(command, quiet=True)
    result: dict[str, Any] = {"name": job.name, "command": job.arguments, "error": None}
    if returncode != 0:
        lines = errors.strip().splitlines() or [f"exit code {returncode}"]
        return result | {"error": lines[-1]}
    try:
        return result | {"metrics": card_of(run).provenance["metrics"]}
    except InputError as error:
        return result | {"error": str(error)}


def _seeds(text: str) -> list[int]:
    match = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    try:
        found = (
            list(range(int(match[1]), int(match[2]) + 1))
            if match
            else [int(part) for part in text.split(",")]
        )
    except ValueError:
        found = []
    require(
        bool(found), f"--seeds must be numbers such as 0,3,5 or a range such as 0..9, got {text!r}"
    )
    return list(dict.fromkeys(found))


def _prices(text: str | None) -> list[float | None]:
    if text is None:
        return [None]
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise InputError(
            f"--prices must be numbers with commas between, such as 0.01,0.05; got {text!r}"
        ) from None


def _table(family: str, results: list[dict[str, Any]]) -> Table:
    table = Table(title=plain(f"Trainings on {family}"), title_justify="left")
    for name in ("run", "J", "stops at", "mean loss", ""):
        table.add_column(name, justify="left" if name in ("run", "") else "right")
    for result in results:
        metrics = result.get("metrics", {})
        figures = (
            metrics.get(name) for name in ("price_adjusted_loss", "mean_halting_step", "mean_loss")
        )
        table.add_row(
            plain(result["name"]),
            *("-" if figure is None else f"{figure:.4g}" for figure in figures),
            plain(result["error"] or "done"),
        )
    return table


if __name__ == "__main__":
    main(sweep)
