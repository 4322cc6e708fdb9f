"""Options that several commands share."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from haltwise._core.errors import InputError, require
from haltwise._core.plugins import is_file, label, load_object
from haltwise._core.workers import Workers
from haltwise.datasets import DIRECTORY_VARIABLE
from haltwise.models.card import Card
from haltwise.tasks import TaskFamily, family

__all__ = [
    "data_directory",
    "device_option",
    "family_name",
    "family_of",
    "family_settings",
    "joined",
    "model_name",
    "own_classes",
    "parse_settings",
    "threads_option",
]

_Command = Callable[..., None]


def data_directory(command: _Command) -> _Command:
    """Add `--data-dir`, which is passed on as `data_dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help=f"Directory that holds mnist/ and cifar10/.  [default: ${DIRECTORY_VARIABLE}]",
    )(command)


def own_classes(command: _Command) -> _Command:
    """Add `--own`, which is passed on as the list `own` of the classes named.

    A card may name files, and weights may be anybody's: like `haltwise.load`, a command executes
    none but those that its user names.
    """

    def loaded(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> list[type]:
        for name in names:
            require(is_file(name), f"--own takes PATH.py:NAME, got {name!r}")
        return [load_object(name, object, "class") for name in names]

    return click.option(
        "--own",
        metavar="PATH.py:NAME",
        multiple=True,
        callback=loaded,
        help="A class of your own that the weights name; its file is executed. May be repeated.",
    )(command)


def device_option(command: _Command) -> _Command:
    """`--device`, tried out."""

    def tried(_: click.Context, __: click.Parameter, name: str) -> torch.device:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"--device {name} cannot be used ({reason}); use --device cpu"
            ) from None
        return device

    return click.option(
        "--device",
        default="cpu",
        show_default=True,
        callback=tried,
        help="Where to compute, e.g. cuda or cuda:1.",
    )(command)


def threads_option(command: _Command) -> _Command:
    """`--threads`, set at once."""

    def set_threads(_: click.Context, __: click.Parameter, value: int | None) -> None:
        if value is not None:
            require(value >= 1, f"--threads must be at least 1, got {value}")
            torch.set_num_threads(value)

    return click.option(
        "--threads",
        type=int,
        expose_value=False,
        callback=set_threads,
        help="CPU threads.  [default: PyTorch's]",
    )(command)


def joined(device: torch.device) -> tuple[torch.device, Workers]:
    """This process's own device, and the workers it is one of, if torchrun started several."""
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device, Workers.join(device)


def family_settings(command: _Command) -> _Command:
    """`--family-set` and `--images`, handed over together as `family_settings`."""

    @functools.wraps(command)  # options below it included
    def collect(images: Path | None, family_set: tuple[str, ...], **others: Any) -> None:
        settings = parse_settings(family_set, "--family-set")
        if images is not None:
            settings["images"] = str(images)
        command(family_settings=settings, **others)

    collect = click.option(
        "--family-set",
        multiple=True,
        metavar="NAME=JSON",
        help="A setting of the family, e.g. --family-set num_hidden=40; may be repeated.",
    )(collect)
    return click.option(
        "--images",
        type=click.Path(path_type=Path),
        help="A directory with other 28 x 28 images in the files of MNIST.",
    )(collect)


def family_of(
    card: Card, name: str | None, settings: Mapping[str, Any], data_dir: Path | None
) -> TaskFamily:
    """The family called `name`, or else the one trained on, as it was then; with `settings`.

    Raises:
        InputError: The one trained on is in a file, which is executed only where `name` names it.
    """
    trained_on = card.family
    if name is not None:
        if trained_on is not None and is_file(name) and label(name) == label(trained_on.name):
            settings = {**trained_on.settings, **settings}
        return family(name, settings, data_dir=data_dir)
    if card.family is None:
        raise InputError(
            "this model was trained on recorded runs, and there is no family to draw others from; "
            "judge it by haltwise train-monitor with --test-runs"
        )
    if is_file(card.family.name):
        raise InputError(
            f"these weights were trained on {card.family.name}, and a file is executed only where "
            f"you name it; add --family {card.family.name}"
        )
    return family(card.family.name, {**card.family.settings, **settings}, data_dir=data_dir)


def family_name(card: Card, name: str | None) -> str:
    """The short name of the family that `family_of` gives."""
    return label(name or ("" if card.family is None else card.family.name))


def model_name(run_or_name: str) -> str:
    """The name under which a model appears: as it ships, or that of its run directory."""
    path = Path(run_or_name)
    return path.resolve().parent.name if path.is_file() else path.resolve().name


def parse_settings(settings: tuple[str, ...], option: str = "--set") -> dict[str, Any]:
    """NAME=JSON pairs as a dictionary.

    Raises:
        InputError: One is no such pair.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        require(bool(equals), f"{option} takes NAME=JSON, got {setting!r}")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            raise InputError(
                f"{option} {name}: {value!r} is not JSON; strings need quotes"
            ) from None
    return parsed
