"""`haltwise train`: train a model that knows when to stop, with progress."""

import os
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from haltwise._core.errors import InputError, require
from haltwise._core.files import read_bytes
from haltwise._core.nested_settings import Leaf, checked, merge
from haltwise._core.plugins import label
from haltwise.cli.options import data_directory, device_option, joined, threads_option
from haltwise.cli.places import DIRECTORY, PATH
from haltwise.cli.progress import run_trainer
from haltwise.cli.settings import SettingsCommand, setting_leaves
from haltwise.models.loading import run_directory
from haltwise.training import PRESETS, Trainer, TrainingSettings
from haltwise.training.presets import default_settings

__all__ = ["command", "command_line", "read_recipe"]

_NO_OPTIONS = ("preset", "runs", "keeps_best")  # another command's, or not of the settings


def _asked(
    family: str | None, preset: str | None, config: Path | str | None
) -> tuple[str | None, str, dict[str, Any]]:
    """Lay family and preset of a command line over its file; the file's other settings."""
    settings = {} if config is None else read_recipe(Path(config))
    written = settings.pop("preset", "act")
    own = settings.get("family", {})
    if "name" in own and family in (None, own["name"]):
        family = own["name"]
        settings["family"] = {"settings": own.get("settings", {})}
    elif "name" in own:  # settings of another family
        del settings["family"]
    return family, preset or written, settings


def read_recipe(path: Path) -> dict[str, Any]:
    """Read nested training settings from a TOML file, or raise an `InputError`."""
    written = read_bytes(path)
    try:
        document = tomllib.loads(written.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}; fix that line") from None
    try:
        return checked(TrainingSettings, document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _leaves(typed: Mapping[str, str], arguments: Sequence[str]) -> Iterator[Leaf]:
    """The settings that are options, all but those that no command line has."""
    family, preset, settings = _asked(
        arguments[0] if arguments else None, typed.get("--preset"), typed.get("--config")
    )
    named = {} if family is None else {"family": {"name": family}}
    rule = typed.get("--rule") or settings.get("rule", {}).get("name")
    below = merge(named, default_settings(preset, family, rule), settings)
    return setting_leaves(typed, below, lambda path: path not in _NO_OPTIONS)


@click.command("train", cls=SettingsCommand, leaves=_leaves)
@click.argument("family", required=False)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="act: what works best; lstm: no halting; thesis: the thesis to the letter.  "
    "[default: act]",
)
@click.option(
    "--config", type=PATH, help="TOML file of settings; those on the command line go over it."
)
@click.option("--out", type=DIRECTORY, help="Run directory.  [default: runs/FAMILY-PRESET]")
@click.option("--resume", type=PATH, help="Go on with the run in this directory.")
@click.option(
    "--continue",
    "go_on",
    is_flag=True,
    help="Go on if the run directory holds this very run already; implied when torchrun restarts.",
)
@device_option
@threads_option
@data_directory
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write TensorBoard event files as well, with histograms of the halting steps.",
)
def command(
    settings: dict[str, Any],
    family: str | None,
    preset: str | None,
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    go_on: bool,
    device: torch.device,
    data_dir: Path | None,
    tensorboard: bool,
) -> None:
    """Train a model that knows when to stop on FAMILY, with the update rule that it stops.

    FAMILY is a name (see `haltwise list`) or one of your own, PATH.py:NAME, whose file is executed.
    The settings of a rule, method, family or estimator are options, too: name it, and --help
    lists them, as in `haltwise train FAMILY --rule adam --help`.

    Ctrl-C stops at the end of the meta-step and leaves a checkpoint. Several workers share a run:
    torchrun --nproc-per-node 4 -m haltwise train FAMILY --run.num-shards 4.
    """
    make: Callable[..., Trainer]
    if resume is not None:
        typed = {
            "FAMILY": family,
            "--preset": preset,
            "--config": config,
            "--out": out,
            "options for settings": settings,
        }
        given = " and ".join(name for name, value in typed.items() if value)
        require(not given, f"--resume takes its settings from the run; drop {given}")
        make = partial(Trainer.resume, run_directory(resume))
    else:
        family, preset, of_file = _asked(family, preset, config)
        if family is None:
            raise InputError("name a family, or a run with --resume; `haltwise list` shows both")
        chosen = TrainingSettings.from_preset(preset, family, of_file, settings)
        directory = out or Path("runs") / f"{label(family)}-{preset}"
        go_on = go_on or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        if go_on and (directory / "config.json").exists():
            make = partial(Trainer.resume, directory, settings=chosen)
        else:
            make = partial(Trainer, chosen, directory, command=command_line())
    device, workers = joined(device)
    trainer = make(device=device, tensorboard=tensorboard, workers=workers, data_dir=data_dir)
    run_trainer(trainer, workers)


def command_line() -> str:
    """Quote the command as it was typed, for the card; `--data-dir` is left out."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == "--data-dir":
            next(words, None)
        elif not word.startswith("--data-dir="):
            kept.append(word)
    return shlex.join(["haltwise", *kept])
