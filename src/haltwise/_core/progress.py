"""How far something is: bars on a terminal, plain lines elsewhere."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Show", "display", "followed", "unless_gone"]

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
    last = time.monotonic()

    def show(what: str, done: int, total: int, figures: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS:
            last = now
            write(f"{what} {done} of {total}" + (f": {figures}" if figures else ""))

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
