"""Where there is no terminal, plain lines say that something goes on and for how long."""

import contextlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from haltwise._core.progress import working
from haltwise.cli import cli
from haltwise.curves import forecast


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


def test_commands_on_recorded_runs_say_that_they_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those on tens of thousands of runs take minutes."""
    monkeypatch.setitem(inspect.unwrap(working).__kwdefaults__, "every", 0.001)
    monkeypatch.setitem(forecast._BOOSTED, "max_iter", 10)
    runs, others, model, stops = (
        str(tmp_path / name) for name in ("runs.csv", "others.csv", "model", "stops.npz")
    )
    for path, least in ((runs, 0.2), (others, 0.25)):
        ends = np.linspace(least, 9 * least, 60)
        losses = ends[:, None] + (3 - ends[:, None]) * 0.9 ** np.arange(30)
        rows = [f"{i},{i % 3},{t},{losses[i, t]}" for i, t in np.ndindex(60, 30)]
        Path(path).write_text("\n".join(["run,group,step,loss", *rows]))
    np.savez(stops, losses=losses, stops=np.full(60, 10))
    reading = ["--cost", "step", "--metric", "loss"]
    for command, said in (
        (["learn", runs, *reading, "--target", "1", "--out", model], ("reading", "learning")),
        (["judge", model, others, *reading, "--target", "1"], ("reading", "judging")),
        (
            ["learn", runs, *reading, "--stop-early", "--price", ".01", "--out", model + "2"],
            ("reading", "learning"),
        ),
        (["judge", model + "2", others, *reading], ("reading", "judging")),
        (["stopping-report", stops, "--price", "0.01"], ("judging",)),
    ):
        left = set(said)
        for _ in range(20):  # what takes milliseconds may be over before a line
            if command[0] == "learn":  # the model of the try before
                shutil.rmtree(command[-1], ignore_errors=True)
            done = CliRunner().invoke(cli, command)
            assert done.exit_code == 0, done.output
            left -= {what for what in left if f"{what}, 0 s" in done.stderr}
            assert not any(f"{what}, 0 s" in done.stdout for what in said)
            assert "fold " not in done.stdout  # which on a terminal would run on from a spinner
            if not left:
                break
        assert not left


WARNED = """
import time, warnings
from rich.console import Console
from haltwise import cli
from haltwise._core.progress import working
warnings.showwarning = cli._show_warning
with working("reading", Console(stderr=True)):
    time.sleep(0.3)
    warnings.warn("odd")
    time.sleep(0.3)
"""


def test_a_warning_has_a_line_of_its_own_on_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", WARNED], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's word for the end
        while part := os.read(ours, 2**16):
            shown += part
    os.close(ours)
    assert shown.count(b"reading") > 2
    [before] = re.findall(rb"(.{5})haltwise: warning: UserWarning: odd\r\n", shown, re.DOTALL)
    assert before == b"\r\x1b[2K"
