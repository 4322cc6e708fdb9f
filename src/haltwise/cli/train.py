"""`haltwise train`: meta-train an optimizer on a family, with a live display."""

import math
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

from haltwise import pretrained
from haltwise._errors import InputError, require
from haltwise.cli.options import data_directory, parse_settings
from haltwise.cli.options import family_settings as family_settings_option
from haltwise.tasks import label
from haltwise.training import POSTERIORS, PRESETS, Trainer, TrainingConfig

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
@click.option(
    "--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda or cuda:1."
)
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
@family_settings_option
@data_directory
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files as well.")
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
    device: str,
    threads: int | None,
    settings: tuple[str, ...],
    family_settings: dict[str, Any],
    resume: Path | None,
    tensorboard: bool,
) -> None:
    """Meta-train an optimizer on FAMILY.

    FAMILY is a name (see `haltwise list`) or one of your own, PATH.py:NAME, whose file is executed.

    Ctrl-C stops at the end of the meta-step and leaves a checkpoint.
    """
    if threads is not None:
        require(threads >= 1, f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if resume is not None:
        require(family is None, "--resume takes family and settings from the run; drop the rest")
        trainer = Trainer.resume(
            pretrained.run_directory(resume), device=_device(device), tensorboard=tensorboard
        )
    else:
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
            family_settings=family_settings or None,
            **parse_settings(settings),
        )
        directory = out or Path("runs") / f"{label(family)}-{preset}"
        trainer = Trainer(
            config,
            directory,
            device=_device(device),
            tensorboard=tensorboard,
            command=_command(),
        )
    run_trainer(trainer)


def _device(name: str) -> torch.device:
    """The device called `name`, tried out."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); use --device cpu") from None
    return device


def _command() -> str:
    """The command as it was typed, for the card."""
    return shlex.join(["haltwise", *sys.argv[1:]])


def run_trainer(trainer: Trainer) -> None:
    """Train to the end, or to Ctrl-C, with a live display; the run directory goes to stdout."""
    console = Console(stderr=True)
    interrupted = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

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
            for progress in trainer.run():
                display.update(
                    task,
                    completed=progress.step,
                    loss=_number(progress.loss),
                    j=_number(progress.price_adjusted_loss),
                    stop=_number(progress.mean_halting_step),
                )
                if interrupted:
                    break
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        trainer.save()
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
    click.echo(str(trainer.directory))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
