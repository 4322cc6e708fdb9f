"""Train, evaluate and report a whole experiment of the thesis, as thesis.toml lists it.

    python experiments/reproduce.py regression

Every step is a command of its own and is printed before it runs. What is done already is skipped
and a training that was interrupted goes on, so the same command resumes it all.
"""

import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from children import Children

from haltwise.cli import main

EXPERIMENTS = tomllib.loads(Path(__file__).with_name("thesis.toml").read_text(encoding="utf-8"))


@click.command()
@click.argument("experiment", type=click.Choice(list(EXPERIMENTS)))
@click.option("--quick", is_flag=True, help="Everything on a small scale, to see that it works.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of runs, records and report.  [default: runs/reproduce-EXPERIMENT]",
)
@click.option("--dry-run", is_flag=True, help="Print the commands and run none.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where mnist/ and cifar10/ lie.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
def reproduce(
    experiment: str,
    quick: bool,
    out: Path | None,
    dry_run: bool,
    data_dir: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Train, evaluate and report a whole EXPERIMENT of the thesis."""
    plan = EXPERIMENTS[experiment]
    directory = out or Path("runs") / f"reproduce-{experiment}"
    click.echo(f"{experiment} takes {plan['quick' if quick else 'full']}.", err=True)
    computing = ["--device", device]
    computing += ["--threads", str(threads)] if threads else []
    computing += ["--data-dir", str(data_dir.absolute())] if data_dir else []
    children = Children()
    with children.guarded():
        for number, step in enumerate(plan["steps"], start=1):
            command = command_of(step, directory, computing, quick=quick)
            typed = shlex.join(["haltwise", *command]) if command else f"{step['product']} is there"
            click.echo(f"[{number}/{len(plan['steps'])}] {typed}", err=True)
            if command and not dry_run:
                directory.mkdir(parents=True, exist_ok=True)
                returncode, _ = children.run(command, directory)
                if returncode:
                    sys.exit(returncode)
    click.echo(str(directory / "report.html"))


def command_of(
    step: Mapping[str, str], directory: Path, computing: Sequence[str], *, quick: bool
) -> list[str] | None:
    """What is to be run in the directory for a step, None if it was."""
    product = directory / step["product"]
    arguments = shlex.split(f"{step['command']} {step.get('quick', '') if quick else ''}")
    if arguments[0] == "train" and (product / "config.json").exists():
        return ["train", "--resume", step["product"], *computing]
    if arguments[0] != "train" and product.exists():
        return None
    return arguments if arguments[0] == "report" else [*arguments, *computing]


if __name__ == "__main__":
    main(reproduce)
