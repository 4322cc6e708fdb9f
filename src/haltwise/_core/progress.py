"""How far something is: bars on a terminal, plain lines elsewhere."""

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Show", "display", "duration", "followed", "unless_gone", "working"]

Part = TypeVar("Part", bound=Sized)

_SECONDS = 10.0  # between lines, at least
Show = Callable[[str, int, int, str], None]
"""What, how many are done, of how many, and figures."""


def followed(parts: Sequence[Part], what: str, *, asked: bool = True) -> Iterator[Part]:
    """Hand out parts of a whole, and show on the standard error stream how much is done if asked.

    Bars need Rich; without it there are lines on a terminal, too.

    Args:
        parts: With a length each.
        what: What they are parts of, as "problems".
        asked: Whether to show anything.
    """
    if not asked:
        yield from parts
        return
    total, done = sum(map(len, parts)), 0
    with _on_stderr() as display_show:
        show = unless_gone(display_show)
        show(what, 0, total, "")
        for part in parts:
            yield part
            done += len(part)
            show(what, done, total, "")


def duration(seconds: float) -> str:
    """A time as people say it.

    Examples:
        >>> duration(7.4), duration(125), duration(7300)
        ('7 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextlib.contextmanager
def working(
    what: str, console: "Console", *, every: float = _SECONDS
) -> Iterator[Callable[[str], None]]:
    """Show that something of unknown length goes on, and for how long.

    Args:
        what: What is done first; what follows is told to the function that is handed out.
        console: A terminal, or where a plain line is written now and then.
        every: Seconds between lines.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    if console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False)
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as shown:
            task = shown.add_task(what)
            yield unless_gone(lambda text: shown.update(task, description=text))
        return
    started, over, now = time.monotonic(), threading.Event(), [what]
    write = unless_gone(lambda line: console.print(line, soft_wrap=True, markup=False))

    def tell() -> None:
        while not over.wait(every):
            write(f"{now[-1]}, {duration(time.monotonic() - started)}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield now.append
    finally:
        over.set()
        teller.join()


def _on_stderr() -> contextlib.AbstractContextManager[Show]:
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console

        return display(Console(stderr=True))
    return _lines(lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201


def unless_gone(show: Callable[..., None]) -> Callable[..., None]:
    """The same, but what is shown may be lost: the terminal or the pipe may have been closed."""

    def shown(*what: object) -> None:
        with contextlib.suppress(OSError, SystemExit):  # Rich exits where a pipe is closed
            show(*what)

    return shown


def display(console: "Console") -> contextlib.AbstractContextManager[Show]:
    """Progress bars on a terminal, else a plain line now and then."""
    if console.is_terminal:
        return _bars(console)
    return _lines(lambda line: console.print(line, soft_wrap=True, highlight=False))


@contextlib.contextmanager
def _lines(write: Callable[[str], None]) -> Iterator[Show]:
    """A plain line now and then, for output that is not a terminal."""
    started = last = time.monotonic()

    def show(what: str, done: int, total: int, figures: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS:
            last = now
            taken = duration(now - started)
            write(f"{what} {done} of {total}, {taken}" + (f": {figures}" if figures else ""))

    yield show


@contextlib.contextmanager
def _bars(console: "Console") -> Iterator[Show]:
    """Progress bars on a terminal; that of a recording goes when it is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeLeft(),
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
