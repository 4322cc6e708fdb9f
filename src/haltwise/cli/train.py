"""`haltwise train`: meta-train an optimizer on a family, with a live display."""

import math
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display

from haltwise.models import loading
from haltwise._core.errors import InputError, require
from haltwise.cli.options import data_directory, device_option, joined, parse_settings
from haltwise.cli.options import family_settings as family_settings_option
from haltwise._core.plugins import label
from haltwise.training import POSTERIORS, PRESETS, Trainer, TrainingConfig, Workers

__all__ = ["run_trainer", "train"]


@click.command()
@click.argument("family", required=False)
@click.option(
    "--preset",
    default="act",
    show_default=True,
    type=click.Choice(list(PRESETS)),
    help="act: what works best; lstm: no halting; thesis: the thesis to the letter.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/FAMILY-PRESET]"
)
@click.option(
    "--posterior",
    type=click.Choice(list(POSTERIORS)),
    help="Over the halting step.  [default: the preset's]",
)
@click.option(
    "--rule", help="What moves the parameters.  [default: lstm; settings: --set rule_settings=JSON]"
)
@click.option(
    "--rule-from",
    help="Begin with the rule of a trained optimizer; with --meta-steps 0 only a head is trained.",
)
@click.option("--head-from", help="Begin with the halting head of a trained optimizer.")
@click.option("--price", type=float, help="Price of a step, in units of the loss.")
@click.option("--horizon", type=int, help="Steps of an unroll.")
@click.option("--meta-steps", type=int, help="Updates of the optimizer's weights.")
@click.option("--batch-size", type=int, help="Problems of a meta-step.")
@click.option("--learning-rate", type=float, help="Of the meta-optimizer Adam.")
@click.option("--continuation", type=float, help="Continuation of the horizon prior, in (0, 1).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and problems.")
@device_option
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=JSON",
    help="Any other setting of the configuration, e.g. --set sum_weight=0.1.",
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
@click.option(
    "--shards",
    type=int,
    help="Virtual shards of a batch, at least as many as workers; see docs/scaling.md.  "
    "[default: 1]",
)
@family_settings_option
@data_directory
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write TensorBoard event files as well, with histograms of the halting steps.",
)
def train(
    family: str | None,
    preset: str,
    out: Path | None,
    posterior: str | None,
    rule: str | None,
    rule_from: str | None,
    head_from: str | None,
    price: float | None,
    horizon: int | None,
    meta_steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    continuation: float | None,
    seed: int,
    device: torch.device,
    threads: int | None,
    settings: tuple[str, ...],
    family_settings: dict[str, Any],
    data_dir: Path | None,
    resume: Path | None,
    go_on: bool,
    shards: int | None,
    tensorboard: bool,
) -> None:
    """Meta-train an optimizer on FAMILY.

    FAMILY is a name (see `haltwise list`) or one of your own, PATH.py:NAME, whose file is executed.

    Ctrl-C stops at the end of the meta-step and leaves a checkpoint. Several workers share a run:
    torchrun --nproc-per-node 4 -m haltwise train FAMILY --shards 4.
    """
    if threads is not None:
        require(threads >= 1, f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if resume is not None:
        require(family is None, "--resume takes family and settings from the run; drop the rest")
        where = _place(device, tensorboard, data_dir)
        run_trainer(Trainer.resume(loading.run_directory(resume), **where), where["workers"])
        return
    if family is None:
        raise InputError("name a family, or a run with --resume; `haltwise list` shows both")
    config = TrainingConfig.from_preset(
        preset,
        family,
        posterior=posterior,
        rule=rule,
        rule_from=rule_from,
        head_from=head_from,
        price=price,
        horizon=horizon,
        num_meta_steps=meta_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        continuation=continuation,
        seed=seed,
        num_shards=shards,
        family_settings=family_settings or None,
        **parse_settings(settings),
    )
    directory = out or Path("runs") / f"{label(family)}-{preset}"
    go_on = go_on or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    where = _place(device, tensorboard, data_dir)
    if go_on and (directory / "config.json").exists():
        trainer = Trainer.resume(directory, config=config, **where)
    else:
        trainer = Trainer(config, directory, command=_command(), **where)
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


def _command() -> str:
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
    """Train to the end, or to Ctrl-C, with a live display; the run directory goes to stdout."""
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

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        with Display(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]}  J {task.fields[j]}  stops at {task.fields[stop]}"
            ),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            refresh_per_second=4,
        ) as display:
            task = display.add_task(
                "meta-training",
                total=trainer.num_steps,
                completed=trainer.step,
                loss="-",
                j="-",
                stop="-",
            )
            recording = display.add_task(
                "recording", total=None, visible=False, loss="-", j="-", stop="-"
            )

            def report(done: int, total: int) -> None:
                display.update(recording, completed=done, total=total, visible=done < total)

            trainer.report_recording = report
            rollbacks = 0
            for progress in trainer.run():
                display.update(
                    task,
                    completed=progress.step,
                    loss=_number(progress.loss),
                    j=_number(progress.price_adjusted_loss),
                    stop=_number(progress.mean_halting_step),
                )
                if progress.num_rollbacks > rollbacks:
                    console.print(
                        f"Training diverged: back to meta-step {progress.step}, the learning rate "
                        "lowered."
                    )
                rollbacks = progress.num_rollbacks
    finally:
        signal.signal(signal.SIGINT, previous)
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


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
