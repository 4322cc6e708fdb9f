"""`haltwise train`: train a model that knows when to stop, with progress."""

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display

from haltwise._core.errors import InputError, require
from haltwise._core.nested_settings import merge
from haltwise._core.plugins import label
from haltwise._core.workers import Workers
from haltwise.cli.options import data_directory, device_option, joined, threads_option
from haltwise.cli.settings import SettingsCommand, Table, collect, read_config
from haltwise.halting.methods import halting_methods
from haltwise.models.loading import run_directory
from haltwise.tasks import families, training_defaults
from haltwise.training import PRESETS, Progress, Trainer, TrainingSettings, estimators
from haltwise.update_rules import rules

__all__ = ["TABLES", "command_line", "run_trainer", "train"]

TABLES: Mapping[str, Table] = {
    "family": families,
    "rule": rules,
    "method": halting_methods,
    "joint.estimator": estimators,
}
"""Tables of the choices among the settings."""


def _defaults(family: str | None, preset: str) -> Mapping[str, Any]:
    return merge(training_defaults().get(family or "", {}), PRESETS.get(preset, {}))


@click.command(
    cls=SettingsCommand,
    settings=TrainingSettings,
    defaults=_defaults,
    tables=TABLES,
    excluded=("preset", "runs", "keeps_best"),
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
def train(**arguments: Any) -> None:
    """Train a model that knows when to stop on FAMILY, with the update rule that it stops.

    FAMILY is a name (see `haltwise list`) or one of your own, PATH.py:NAME, whose file is executed.
    The settings of a rule, method, family or estimator are options, too: name it, and --help
    lists them, as in `haltwise train FAMILY --rule adam --help`.

    Ctrl-C stops at the end of the meta-step and leaves a checkpoint. Several workers share a run:
    torchrun --nproc-per-node 4 -m haltwise train FAMILY --run.num-shards 4.
    """
    settings, others = collect(arguments, TABLES)
    _train(settings, **others)


def _train(
    settings: dict[str, Any],
    *,
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
    if resume is not None:
        require(
            family is None and config is None,
            "--resume takes family and settings from the run; drop the rest",
        )
        where = _place(device, tensorboard, data_dir)
        run_trainer(Trainer.resume(run_directory(resume), **where), where["workers"])
        return
    written = read_config(config)
    preset = preset or str(written.pop("preset", "act"))
    own = written.get("family")
    named = own if isinstance(own, str) else (own or {}).get("name")
    family = family or named
    if family is None:
        raise InputError("name a family, or a run with --resume; `haltwise list` shows both")
    if isinstance(own, str):
        del written["family"]
    chosen = TrainingSettings.from_preset(preset, family, written, settings)
    directory = out or Path("runs") / f"{label(family)}-{preset}"
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


def run_trainer(trainer: Trainer, workers: Workers | None = None) -> None:
    """Train to the end, or to Ctrl-C or SIGTERM, with progress; the run directory goes to stdout."""
    workers = workers or Workers()
    console = Console(stderr=True, quiet=not workers.is_first)
    asked = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        trainer.interrupt()

    previous = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        follow = _follow_display if console.is_terminal else _follow_lines
        follow(trainer, console)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    workers.leave()
    if trainer.interrupted:
        console.print(
            f"Stopped after {trainer.step} meta-steps; go on with: "
            f"haltwise train --resume {trainer.directory}",
            soft_wrap=True,
        )
        raise KeyboardInterrupt
    if trainer.num_nonfinite:
        console.print(
            f"{trainer.num_nonfinite} problems were left out because they were not finite."
        )
    if trainer.num_skipped:
        console.print(
            f"{trainer.num_skipped} meta-steps were skipped because their gradient was not finite."
        )
    if workers.is_first:
        click.echo(str(trainer.directory))


def _follow_lines(trainer: Trainer, console: Console) -> None:
    """A plain line now and then, where nobody watches a terminal."""
    every, last = 10.0, time.monotonic()

    def now(sentence: Callable[[], str]) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            console.print(sentence(), soft_wrap=True, highlight=False)

    trainer.report_recording(lambda done, total: now(lambda: f"recorded {done} of {total}"))
    rollbacks = 0
    for progress in trainer.run():
        now(
            lambda progress=progress: (  # type: ignore[misc]
                f"meta-step {progress.step} of {trainer.num_steps}: "
                + ", ".join(f"{name} {value}" for name, value in _figures(progress).items())
            )
        )
        rollbacks = _tell_rollback(console, progress, rollbacks)


def _follow_display(trainer: Trainer, console: Console) -> None:
    with Display(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        refresh_per_second=4,
    ) as display:
        task = display.add_task(
            "meta-training", total=trainer.num_steps, completed=trainer.step, figures=""
        )
        recording = display.add_task("recording", total=None, visible=False, figures="")

        def report(done: int, total: int) -> None:
            display.update(recording, completed=done, total=total, visible=done < total)

        trainer.report_recording(report)
        rollbacks = 0
        for progress in trainer.run():
            figures = "  ".join(f"{name} {value}" for name, value in _figures(progress).items())
            display.update(task, completed=progress.step, figures=figures)
            rollbacks = _tell_rollback(console, progress, rollbacks)


def _tell_rollback(console: Console, progress: Progress, known: int) -> int:
    if progress.num_rollbacks > known:
        console.print(
            f"Training diverged: back to meta-step {progress.step}, the learning rate lowered."
        )
    return progress.num_rollbacks


def _figures(progress: Progress) -> dict[str, str]:
    return {
        "loss": _number(progress.loss),
        "J": _number(progress.price_adjusted_loss),
        "stops at": _number(progress.mean_halting_step),
    }


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
