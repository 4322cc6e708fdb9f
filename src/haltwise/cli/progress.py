"""A training followed on a terminal or in a log, and ended by signals."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display

from haltwise._core.workers import Workers
from haltwise.cli.printing import plain, say
from haltwise.training import Progress, Trainer

__all__ = ["display", "run_trainer"]

_SECONDS = 10.0  # between lines, at least
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_Show = Callable[[str, int, int, str], None]  # what, done, of how many, figures


def run_trainer(trainer: Trainer, workers: Workers | None = None) -> None:
    """Train to the end or to a signal, with progress; the run directory goes to stdout.

    Ctrl-C, SIGTERM and the end of the terminal (unless `nohup` has it ignored) are such signals.

    Raises:
        KeyboardInterrupt: It was ended, with a checkpoint.
    """
    workers = workers or Workers()
    console = Console(stderr=True, quiet=not workers.is_first)

    watched = [
        number
        for number in _SIGNALS
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
    ]

    def interrupt(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        for number in watched:  # the second time at once
            signal.signal(number, signal.default_int_handler)
        trainer.interrupt()

    previous = {number: signal.signal(number, interrupt) for number in watched}
    try:
        _follow(trainer, console)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    workers.leave()
    if trainer.interrupted:
        console.print(
            plain(
                f"Stopped after {trainer.step} meta-steps; go on with: "
                f"haltwise train --resume {trainer.directory}"
            ),
            soft_wrap=True,
        )
        raise KeyboardInterrupt
    for count, what in (
        (trainer.num_nonfinite, "problems were left out because they were not finite."),
        (trainer.num_skipped, "meta-steps were skipped because their gradient was not finite."),
    ):
        if count:
            console.print(f"{count} {what}")
    if workers.is_first:
        say(trainer.directory)


def _follow(trainer: Trainer, console: Console) -> None:
    rollbacks = 0
    with display(console) as watched:
        show, tell = _unless_gone(watched), _unless_gone(console.print)
        trainer.source.report = lambda done, total: show("recorded", done, total, "")
        for progress in trainer.run():
            show("meta-step", progress.step, trainer.num_steps, _figures(progress))
            if progress.num_rollbacks > rollbacks:
                tell(
                    f"Training diverged: back to meta-step {progress.step}, the learning rate "
                    "lowered."
                )
            rollbacks = progress.num_rollbacks  # another phase counts anew


def _unless_gone(show: Callable[..., None]) -> Callable[..., None]:
    """The same, but training goes on where the terminal or the pipe that it shows to is closed."""

    def shown(*what: object) -> None:
        with contextlib.suppress(OSError, SystemExit):  # Rich exits where a pipe is closed
            show(*what)

    return shown


def _figures(progress: Progress) -> str:
    loss, j, stop = (
        "-" if math.isnan(value) else f"{value:.4g}"
        for value in (progress.loss, progress.price_adjusted_loss, progress.mean_halting_step)
    )
    return f"loss {loss}, J {j}, stops at {stop}"


def display(console: Console) -> contextlib.AbstractContextManager[_Show]:
    """Progress bars on a terminal, else a plain line now and then."""
    return (_bars if console.is_terminal else _lines)(console)


@contextlib.contextmanager
def _lines(console: Console) -> Iterator[_Show]:
    """A plain line now and then, for output that is not a terminal."""
    last = time.monotonic()

    def show(what: str, done: int, total: int, figures: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS:
            last = now
            line = f"{what} {done} of {total}" + (f": {figures}" if figures else "")
            console.print(line, soft_wrap=True, highlight=False)

    yield show


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[_Show]:
    """Progress bars on a terminal; that of a recording goes when it is done."""
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
        tasks = {}

        def show(what: str, done: int, total: int, figures: str) -> None:
            if what not in tasks:  # what a resumed run has done already took no time
                tasks[what] = display.add_task(what, total=total, completed=done, figures=figures)
            is_over = what == "recorded" and done == total
            display.update(
                tasks[what], completed=done, total=total, figures=figures, visible=not is_over
            )

        yield show
