"""Train the shipped weights, each from one file of settings in experiments/weights.

    python experiments/train_weights.py                    # all of them, some four hours on 2 cores
    python experiments/train_weights.py regression-2d-mode # one, and what it begins with

A file is what `haltwise train --config FILE` takes; its run is runs/NAME. Where it begins with the
rule of another run, that is trained first. What is done already is not done again, and what was
interrupted goes on.
"""

import os
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from children import Children

from haltwise._core.discovery import lookup
from haltwise.cli import main
from haltwise.models.loading import find

RECIPES = Path(__file__).parent / "weights"
SHIPPED = find("regression-2d").parent
"""Where weights lie in the package, as their recipes lie in RECIPES."""

ON_DEVICE = (
    *("regression-10d-plain", "student-t-10d", "regression-10d-plain-adam"),
    *("regression-10d-noisy-adam", "regression-10d-smooth-sgd"),
    *("mnist-mlp-lstm", "cifar10-cnn-lstm", "cifar10-cnn"),
)
"""Trainings that `--device` is for: long ones of a halter, and of networks. The others take
minutes on a CPU."""

QUICK = (
    *("--horizon", "6", "--joint.batch-size", "4", "--halter.memory", "8", "--halter.width", "8"),
    *("--halting.num-steps", "4", "--halting.num-recorded", "16", "--halting.batch-size", "8"),
    *("--validation.every", "2", "--validation.num-problems", "16"),
    *("--validation.num-calibration", "16"),
)
"""Options of a smoke test, beside those of `quick_options`."""


def recipes() -> dict[str, Path]:
    """Find the files by the names of their runs; the rules that begin them are no shipped names."""
    return {path.stem: path for path in sorted(RECIPES.rglob("*.toml"))}


def needs(recipe: Mapping[str, Any]) -> list[str]:
    """Names of the runs that a recipe begins with."""
    origins = [recipe.get("rule_from", ""), recipe.get("halter_from", "")]
    return [origin.removeprefix("runs/") for origin in origins if origin.startswith("runs/")]


def in_order(wanted: Sequence[str], known: Mapping[str, Path]) -> list[str]:
    """Sort names so that whatever a recipe begins with comes before it, and is among them."""
    ordered: list[str] = []
    for name in wanted:
        recipe = tomllib.loads(lookup(known, name, "recipe").read_text(encoding="utf-8"))
        for other in [*in_order(needs(recipe), known), name]:
            if other not in ordered:
                ordered.append(other)
    return ordered


def quick_options(recipe: Mapping[str, Any]) -> list[str]:
    """Options that make a training take seconds, with the same phases."""
    trains_rule = recipe.get("joint", {}).get("num_steps", 1) > 0
    halts = recipe.get("preset") != "lstm"
    options = [*QUICK, "--joint.num-steps", "4" if trains_rule else "0"]
    return options if halts else [*options, "--halting.num-steps", "0"]


@click.command()
@click.argument("wanted", metavar="[NAME]...", nargs=-1)
@click.option("--device", default="cpu", show_default=True, help="Device of the long trainings.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Directory that holds runs/.  [default: here]",
)
@click.option("--quick", is_flag=True, help="All on a small scale, to see that it works.")
@click.option("--install", is_flag=True, help="Copy the weights into the package.")
@click.option("--dry-run", is_flag=True, help="Print the commands and run none.")
def train_weights(
    wanted: tuple[str, ...], device: str, root: Path, quick: bool, install: bool, dry_run: bool
) -> None:
    """Train the shipped weights called NAME, or all of them."""
    known = recipes()
    ordered = in_order(wanted or list(known), known)
    children = Children()
    with children.guarded():
        for number, name in enumerate(ordered, start=1):
            command = command_of(name, known[name], root, device, quick=quick)
            click.echo(f"[{number}/{len(ordered)}] {shlex.join(['haltwise', *command])}", err=True)
            if dry_run:
                continue
            root.mkdir(parents=True, exist_ok=True)
            returncode, _ = children.run(command, root)
            if returncode:
                sys.exit(returncode)
            place = known[name].relative_to(RECIPES).with_suffix(".safetensors")
            if install and place.parent.name != "rules":  # those begin other runs, and do not ship
                weights = root / "runs" / name / "best.safetensors"
                shutil.copy(weights, SHIPPED / place)


def command_of(name: str, path: Path, root: Path, device: str, *, quick: bool) -> list[str]:
    """Arguments of `haltwise` that train a recipe, in the directory that holds runs/."""
    command = ["train", "--config", os.path.relpath(path, root), "--out", f"runs/{name}"]
    command += ["--continue", "--threads", "1"]
    command += ["--device", device] if name in ON_DEVICE else []
    recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    return [*command, *(quick_options(recipe) if quick else ())]


if __name__ == "__main__":
    main(train_weights)
