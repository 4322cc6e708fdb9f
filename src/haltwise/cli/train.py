"""`haltwise train`: train a model that knows when to stop, with progress."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import click
import torch

from haltwise._core.errors import require
from haltwise._core.nested_settings import merge
from haltwise._core.plugins import label
from haltwise.cli.options import data_directory, device_option, joined, threads_option
from haltwise.cli.progress import run_trainer
from haltwise.cli.settings import SettingsCommand, Typed, read_config
from haltwise.models.loading import run_directory
from haltwise.training import PRESETS, Trainer, TrainingSettings
from haltwise.training.presets import default_settings

__all__ = ["command_line", "train"]


@final
class _Asked(NamedTuple):
    """What a command line and its configuration file ask for, options for settings aside."""

    family: str | None
    preset: str
    settings: dict[str, Any]
    """Those of the file."""


def _asked(family: str | None, preset: str | None, config: str | Path | None) -> _Asked:
    """Lay the command line over its configuration file."""
    settings = read_config(config)
    written = settings.pop("preset", "act")
    own = settings.get("family", {})
    if "name" in own and family in (None, own["name"]):
        family = own["name"]
        settings["family"] = {"settings": own.get("settings", {})}
    elif "name" in own:  # settings of another family
        del settings["family"]
    return _Asked(family, preset or str(written), settings)


def _below(typed: Typed) -> Mapping[str, Any]:
    """The settings that the options go over, for their defaults."""
    family = typed.arguments[0] if typed.arguments else None
    asked = _asked(family, typed.options.get("--preset"), typed.options.get("--config"))
    named = {"family": {"name": asked.family}} if asked.family is not None else {}
    return merge(named, default_settings(asked.preset, asked.family), asked.settings)


@click.command(
    cls=SettingsCommand,
    sections=(
        *("family", "mixed_with", "rule", "rule_from", "method", "halter", "halter_from"),
        *("horizon", "price", "price_range", "joint", "halting", "adam", "validation", "run"),
        "seed",
    ),
    below=_below,
)
@click.argument("family", required=False)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="act: what works best; lstm: no halting; thesis: the thesis to the letter.  "
    "[default: act]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="TOML file of settings; those on the command line go over it.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/FAMILY-PRESET]"
)
@click.option(
    "--resume", type=click.Path(path_type=Path), help="Go on with the run in this directory."
)
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
def train(
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
    if resume is not None:
        given = [
            name
            for name, value in (
                ("FAMILY", family),
                ("--preset", preset),
                ("--config", config),
                ("--out", out),
                ("options for settings", settings),
            )
            if value
        ]
        require(not given, f"--resume takes its settings from the run; drop {' and '.join(given)}")
        where = _place(device, tensorboard, data_dir)
        run_trainer(Trainer.resume(run_directory(resume), **where), where["workers"])
        return
    asked = _asked(family, preset, config)
    require(
        asked.family is not None,
        "name a family, or a run with --resume; `haltwise list` shows both",
    )
    assert asked.family is not None
    chosen = TrainingSettings.from_preset(asked.preset, asked.family, asked.settings, settings)
    directory = out or Path("runs") / f"{label(asked.family)}-{asked.preset}"
    go_on = go_on or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    where = _place(device, tensorboard, data_dir)
    if go_on and (directory / "config.json").exists():
        trainer = Trainer.resume(directory, settings=chosen, **where)
    else:
        trainer = Trainer(chosen, directory, command=command_line(), **where)
    run_trainer(trainer, where["workers"])


def _place(device: torch.device, tensorboard: bool, data_dir: Path | None) -> dict[str, Any]:
    """Where to train, and with whom."""
    device, workers = joined(device)
    return {
        "device": device,
        "tensorboard": tensorboard,
        "workers": workers,
        "data_dir": data_dir,
    }


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
