"""Options that several commands share."""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from haltwise._core.discovery import configure
from haltwise._core.errors import InputError, require
from haltwise._core.nested_settings import Choice, Leaf
from haltwise._core.plugins import is_file, label, load_object
from haltwise._core.tensors import usable_device
from haltwise._core.workers import Workers
from haltwise.cli.places import JSON, PATH
from haltwise.datasets import DIRECTORY_VARIABLE
from haltwise.models.card import Card
from haltwise.processes import ProcessFamily, process_families
from haltwise.tasks import TaskFamily, family
from haltwise.training.presets import process_family
from haltwise.training.sources import descents_of

__all__ = [
    "curves_directory",
    "data_directory",
    "device_option",
    "direction_option",
    "family_choice",
    "family_leaves",
    "family_name",
    "family_of",
    "family_option",
    "horizon_option",
    "joined",
    "json_option",
    "learners_option",
    "measuring_options",
    "model_name",
    "own_classes",
    "price_option",
    "process_family_of",
    "threads_option",
]

_MOST_THREADS = 1024  # PyTorch crashes with some numbers beyond

Command = Callable[..., None]


def _load_own(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> list[type]:
    """Execute the files that the user names: a card may name some, too, and come from anywhere."""
    for name in names:
        require(is_file(name), f"--own takes PATH.py:NAME, got {name!r}")
    return [load_object(name, object, "class") for name in names]


def _try_device(_: click.Context, __: click.Parameter, name: str) -> torch.device:
    return usable_device(name)


def _set_threads(_: click.Context, __: click.Parameter, value: int | None) -> None:
    if value is not None:
        require(
            1 <= value <= _MOST_THREADS,
            f"--threads must be at least 1 and at most {_MOST_THREADS:,}, got {value}",
        )
        torch.set_num_threads(value)


family_option = click.option(
    "--family",
    help="Family to draw problems from; --family.NAME VALUE changes a setting of it.  [default: "
    "the one trained on]",
)
price_option = click.option(
    "--price", type=float, help="Price of a step, in units of the loss.  [default: the card's]"
)
horizon_option = click.option("--horizon", type=int, help="Steps allowed.  [default: the card's]")
json_option = click.option("--json", "json_path", type=JSON, help="Write all figures here, too.")
own_classes = click.option(
    "--own",
    metavar="PATH.py:NAME",
    multiple=True,
    callback=_load_own,
    help="A class of your own that the weights name; its file is executed. May be repeated.",
)
direction_option = click.option(
    "--direction",
    type=click.Choice(["min", "max"]),
    default="min",
    show_default=True,
    help="Whether lower or higher is better of what is given: max for an accuracy.",
)
data_directory = click.option(
    "--data-dir",
    type=PATH,
    help=f"Directory that holds mnist/ and cifar10/.  [default: ${DIRECTORY_VARIABLE}]",
)
curves_directory = click.option(
    "--data-dir",
    type=PATH,
    help="Directory in which recorded runs are looked for, or its folder curves/, where there are "
    f"none of that name here.  [default: ${DIRECTORY_VARIABLE}]",
)
device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=_try_device,
    help="Where to compute, e.g. cuda or cuda:1.",
)
threads_option = click.option(
    "--threads",
    type=int,
    expose_value=False,
    callback=_set_threads,
    help="CPU threads.  [default: PyTorch's]",
)


def measuring_options(command: Command) -> Command:
    """Give a command what all that measure weights on problems take."""
    for option in (threads_option, data_directory, own_classes, json_option):
        command = option(command)
    return command


def learners_option(*, default: bool) -> Callable[[Command], Command]:
    """`--learners`, of commands that judge stops."""
    return click.option(
        "--learners/--no-learners",
        default=default,
        show_default=True,
        help="Whether trees and a logistic regression on all signals are baselines, too; they take "
        "half a minute for 2,000 problems and a price.",
    )


def joined(device: torch.device) -> tuple[torch.device, Workers]:
    """This process's own device, and the workers it is one of, if torchrun started several."""
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device, Workers.join(device)


def family_leaves(typed: Mapping[str, str], _: Sequence[str]) -> Iterator[Leaf]:
    """Every `--family.NAME` typed; which there are is known when the family is."""
    for option in typed:
        if option.startswith("--family."):
            yield Leaf(option[2:].replace("-", "_"), Any | None, None, "A setting of the family.")


def family_of(
    card: Card, name: str | None, settings: Mapping[str, Any], data_dir: Path | None
) -> TaskFamily:
    """Make the family of `family_choice`; for `data_dir` see `haltwise.tasks.family`."""
    chosen = family_choice(card, name, settings)
    return family(chosen.name, chosen.settings, data_dir=data_dir)


def process_family_of(
    card: Card, name: str | None, settings: Mapping[str, Any], data_dir: Path | None
) -> ProcessFamily:
    """Make the family of processes of `family_choice`: of problems under an engine, for its stop.

    Raises:
        InputError: It is one of problems, which this model does not stop.
    """
    chosen = family_choice(card, name, settings)
    if card.engine is not None:
        problems = family(chosen.name, chosen.settings, data_dir=data_dir)
        return descents_of(card.engine, problems)
    found = process_family(chosen.name)
    require(
        found is not None,
        f"this model stops processes, and {label(chosen.name)} is no family of processes; choose "
        f"among {', '.join(process_families())} or name PATH.py:NAME",
    )
    made: ProcessFamily = configure(found, chosen.settings, chosen.name)
    return made


def family_choice(card: Card, name: str | None, settings: Mapping[str, Any]) -> Choice:
    """The family called `name`, or else the one trained on, as it was then.

    Args:
        card: The card of the model that is judged.
        name: A name, PATH.py:NAME, or None.
        settings: Nested settings, of which those of the family go over its own.

    Raises:
        InputError: The one trained on is in a file, which is executed only where `name` names it.
    """
    trained_on = card.family
    changed = settings.get("family", {}).get("settings", {})
    if name is not None:
        if trained_on is not None and is_file(name) and label(name) == label(trained_on.name):
            changed = {**trained_on.settings, **changed}
        return Choice(name, changed)
    if trained_on is None:
        raise InputError(
            "this model was trained on recorded runs, and there is no family to draw others from; "
            "judge it by haltwise train-monitor with --test-runs, or calibrate it with --runs"
        )
    if is_file(trained_on.name):
        raise InputError(
            f"these weights were trained on {trained_on.name}, and since weights may come from "
            "anywhere, a file that they name is executed only where you name it, too; if you trust "
            f"it, add --family {shlex.quote(trained_on.name)}"
        )
    return Choice(trained_on.name, {**trained_on.settings, **changed})


def family_name(card: Card, name: str | None) -> str:
    """The short name of the family that `family_of` gives."""
    return label(name or ("" if card.family is None else card.family.name))


_OF_RUNS = ("best.safetensors", "model.safetensors")  # what runs call the files of their weights


def model_name(run_or_name: str) -> str:
    """The name under which a model appears: that of its run directory, or of its file."""
    path = Path(run_or_name).resolve()
    if not path.is_file():
        return path.name
    return path.parent.name if path.name in _OF_RUNS else path.stem
