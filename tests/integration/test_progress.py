"""Where there is no terminal, plain lines say that something goes on and for how long."""

import io
import time

from rich.console import Console

from haltwise._core.progress import working


def told(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_plain_lines_are_written_now_and_then() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with working("recording", console, every=0.01) as announce:
        while "recording, 0 s" not in told(console):
            time.sleep(0.01)
        announce("judging [all]")
        while "judging [all], 0 s" not in told(console):
            time.sleep(0.01)
    lines = told(console).splitlines()
    assert all("\x1b" not in line for line in lines)
    time.sleep(0.05)
    assert told(console).splitlines() == lines  # it is over


def test_a_terminal_is_told_at_once() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with working("recording", console) as announce:
        announce("judging [all]")
        time.sleep(0.3)
    assert "judging [all]" in told(console)


def test_short_work_leaves_no_line() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with working("recording", console):
        pass
    assert told(console) == ""
