"""`haltwise sweep`: the same training under many seeds or prices, as independent jobs."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from haltwise._core.errors import InputError, require
from haltwise._core.files import make_directory, write_atomically
from haltwise.models import loading
from haltwise.tasks import label

__all__ = ["sweep"]


class _Job(NamedTuple):
    """One training."""

    name: str
    arguments: list[str]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("family")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--seeds", default="0", show_default=True, help="Seeds: 0,3,5 or a range such as 0..9."
)
@click.option(
    "--prices", metavar="C,C,...", help="Prices of a step.  [default: the family's alone]"
)
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
    """Meta-train on FAMILY once for every seed and price; OPTIONS are those of `haltwise train`.

    Every training is a process of its own: one that fails is reported and hurts no other. Repeat
    the command to go on with what was interrupted or failed; what is done is not done again.
    """
    from joblib import Parallel, delayed

    require(jobs >= 1, f"--jobs must be at least 1, got {jobs}")
    taken = {"--out", "--seed", "--price", "--resume", "--continue"} & set(options)
    require(not taken, f"a sweep sets {', '.join(sorted(taken))} itself; drop it")
    directory = out or Path("runs") / f"{label(family)}-sweep"
    make_directory(directory)
    todo = [
        _Job(
            f"seed-{seed}" + (f"-price-{price:g}" if price is not None else ""),
            [
                *("train", family, *options, "--seed", str(seed)),
                *(("--price", repr(price)) if price is not None else ()),
            ],
        )
        for seed, price in itertools.product(_seeds(seeds), _prices(prices))
    ]
    with Console(stderr=True).status(f"{len(todo)} trainings, {jobs} at a time"):
        # Threads only wait here, for the processes do the work.
        results = Parallel(n_jobs=jobs, backend="threading")(
            delayed(_run)(job, directory) for job in todo
        )
    document = {"family": family, "options": list(options), "runs": results}
    write_atomically(directory / "sweep.json", (json.dumps(document, indent=1) + "\n").encode())
    Console().print(_table(family, results))
    click.echo(str(directory))
    failed = [result["name"] for result in results if result["error"] is not None]
    require(not failed, f"{len(failed)} of {len(todo)} trainings failed: {', '.join(failed)}")


def _run(job: _Job, directory: Path) -> dict[str, Any]:
    """Train in a process of its own; what became of it."""
    run = directory / job.name
    command = [sys.executable, "-m", "haltwise", *job.arguments, "--continue", "--out", str(run)]
    command += [] if "--threads" in job.arguments else ["--threads", "1"]
    process = subprocess.run(  # noqa: S603 - our own command
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    result: dict[str, Any] = {"name": job.name, "command": job.arguments, "error": None}
    if process.returncode != 0:
        said = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return result | {"error": said[-1]}
    try:
        return result | {"metrics": loading.read_card(run)["metrics"]}
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
    table = Table(title=f"Trainings on {family}", title_justify="left")
    for name in ("run", "J", "stops at", "mean loss", ""):
        table.add_column(name, justify="left" if name in ("run", "") else "right")
    for result in results:
        metrics = result.get("metrics", {})
        figures = (
            metrics.get(name) for name in ("price_adjusted_loss", "mean_halting_step", "mean_loss")
        )
        table.add_row(
            result["name"],
            *("-" if figure is None else f"{figure:.4g}" for figure in figures),
            result["error"] or "done",
        )
    return table
