"""A training followed on a terminal or in a log, and ended by signals."""

import math
import shlex
import signal
from types import FrameType

from rich.console import Console

from haltwise._core.progress import display, unless_gone
from haltwise._core.workers import Workers
from haltwise.cli.printing import plain, say
from haltwise.training import Progress, Trainer

__all__ = ["run_trainer"]

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


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
                f"haltwise train --resume {shlex.quote(str(trainer.directory))}"
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
        show, tell = unless_gone(watched), unless_gone(console.print)
        trainer.source.report = lambda done, total: show("recorded", done, total, "")
        for progress in trainer.run():
            show("meta-step", progress.step, trainer.num_steps, _figures(progress))
            if progress.num_rollbacks > rollbacks:
                tell(
                    f"Training diverged: back to meta-step {progress.step}, the learning rate "
                    "lowered."
                )
            rollbacks = progress.num_rollbacks  # another phase counts anew


def _figures(progress: Progress) -> str:
    loss, j, stop = (
        "-" if math.isnan(value) else f"{value:.4g}"
        for value in (progress.loss, progress.price_adjusted_loss, progress.mean_halting_step)
    )
    return f"meta-loss {loss}, validated J {j}, stops at {stop}"
