"""A training followed on a terminal or in a log, and ended by signals."""

import math
import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display

from haltwise._core.workers import Workers
from haltwise.training import Progress, Trainer

__all__ = ["follow_lines", "run_trainer"]


def run_trainer(trainer: Trainer, workers: Workers | None = None) -> None:
    """Train to the end, or to Ctrl-C or SIGTERM, with progress; the run directory goes to stdout.

    Raises:
        KeyboardInterrupt: It was ended, with a checkpoint.
    """
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
        (_follow_display if console.is_terminal else follow_lines)(trainer, console)
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


def follow_lines(trainer: Trainer, console: Console, every: float = 10.0) -> None:
    """Train to the end with a plain line now and then, for output that is not a terminal.

    Args:
        trainer: The run.
        console: Where to write.
        every: Seconds between lines, at least.
    """
    last = time.monotonic()

    def print_now_and_then(line: Callable[[], str]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            console.print(line(), soft_wrap=True, highlight=False)

    trainer.source.report = lambda done, total: print_now_and_then(
        lambda: f"recorded {done} of {total}"
    )
    rollbacks = 0
    for progress in trainer.run():
        print_now_and_then(partial(_line, progress, trainer.num_steps))
        rollbacks = _print_rollback(console, progress, rollbacks)


def _line(progress: Progress, num_steps: int) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in _figures(progress).items())
    return f"meta-step {progress.step} of {num_steps}: {figures}"


def _follow_display(trainer: Trainer, console: Console) -> None:
    """Train to the end with progress bars on a terminal."""
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

        trainer.source.report = report
        rollbacks = 0
        for progress in trainer.run():
            figures = "  ".join(f"{name} {value}" for name, value in _figures(progress).items())
            display.update(task, completed=progress.step, figures=figures)
            rollbacks = _print_rollback(console, progress, rollbacks)


def _print_rollback(console: Console, progress: Progress, known: int) -> int:
    """Print that training was rolled back, if it was; the number of rollbacks."""
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
