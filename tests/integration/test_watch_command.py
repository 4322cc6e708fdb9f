"""`haltwise watch`: on logs that grow, in threads and processes of their own."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from in_process import Result, haltwise
from tiny_rules import patience

from haltwise import RunMonitor
from haltwise._core.errors import DataWarning
from haltwise.curves import read

RULE = f"{Path(__file__).parents[1] / 'tiny_rules.py'}:Patience"


LEARNED = ("--rule", "training-runs", "--level", 0.1, "--cost", "step")


def watch(log: Path, *arguments: object) -> Result:
    options = (
        "--rule",
        RULE,
        "--level",
        -9,
        "--direction",
        "min",
        "--metric",
        "loss",
        "--poll",
        0.02,
    )
    return haltwise("watch", log, *options, *arguments, cwd=log.parent)


def lines(values: list[float], start: int = 0) -> str:
    return "".join(f"{start + i},{value}\n" for i, value in enumerate(values))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.csv"


def test_a_growing_log_is_given_up(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = iter(
        ["step,lo", "ss\n", lines([3.0, 2.0]), "", "2,2", ".5\n", lines([2.5, 2.5], 3), "never"]
    )

    def sleep(seconds: float) -> None:
        assert seconds == 0.02
        with log.open("a") as file:
            file.write(next(parts))

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    found = watch(log, "--cost", "step", "--level", -2.5, "--exit-code")
    assert found.returncode == 3
    first, second, third = found.stdout.splitlines()
    assert first == f"{log}: waiting: there is no file or folder {log}"
    assert second == f"{log}: go on, loss 2 at 1 after 2 points"
    assert third == f"{log}: give up, loss 2.5 at 4: nothing was better for 3 points"
    assert next(parts) == "never"


@pytest.mark.parametrize(("look", "wait"), [(0.001, 0.02), (2.0, 18.0)])
def test_a_log_that_takes_long_to_look_at_is_looked_at_less_often(
    log: Path, monkeypatch: pytest.MonkeyPatch, look: float, wait: float
) -> None:
    log.write_text("step,loss\n" + lines([0.5, 0.4]))
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        with log.open("a") as file:
            file.write(lines([0.5, 0.5, 0.5], 2))

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", itertools.count(0, look).__next__)
    watch(log, "--cost", "step", "--level", -2.5)
    assert waits == [wait]


def test_what_keeps_a_log_from_being_read_is_said_when_it_appears(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str) -> None:
        log.write_text(text)

    edits = iter(
        [
            partial(write, ""),
            partial(write, "run,step,loss\n"),
            partial(write, "run,step,los\na,0,3\n"),
            partial(write, "run,step,los\na,0,3\na,1,3\n"),
            partial(write, "run,step,loss\na,0,3\nb,0,3\n"),
            partial(write, "run,step,loss\na,0,3\na,1,3\na,2,3\na,3,3\n"),
        ]
    )
    monkeypatch.setattr(time, "sleep", lambda _: next(edits)())
    found = watch(log, "--cost", "step", "--level", -2.5, "--exit-code")
    assert [line.removeprefix(f"{log}: ") for line in found.stdout.splitlines()] == [
        f"waiting: there is no file or folder {log}",
        "waiting: there is no column 'loss' of numbers; name one of step, los",
        f"waiting: {log} holds 2 runs; watch a log that holds one",
        "give up, loss 3 at 3: nothing was better for 3 points",
    ]


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--level", -4.5), 0, "go on, loss 2 at 5 after 6 points"),
        (("--level", -1.5), 3, "give up, loss 2 at 3: nothing was better for 2 points"),
        (("--level", -1.5, "--min-points", 6), 3, "give up, loss 2 at 5"),
        (("--level", -1.5, "--min-points", 7), 0, "go on"),
        (("--level", -1.5, "--target", 2), 0, "the target 2 is met, loss 2 at 1"),
        (("--level", -4.5, "--budget", 5), 0, "the budget 5 is spent, loss 2 at 5"),
        (("--level", -4.5, "--budget", 6), 0, "go on"),
        (("--level", -3.5, "--direction", "max"), 3, "give up, loss 2 at 4: nothing"),
    ],
    ids=str,
)
def test_the_verdict_of_a_whole_log(
    options: tuple[Any, ...], code: int, sentence: str, log: Path
) -> None:
    log.write_text("step,loss\n" + lines([3.0, 2, 2.5, 2, 2, 2]))
    found = watch(log, "--once", "--exit-code", "--cost", "step", *options)
    assert found.stdout.startswith(f"{log}: {sentence}")
    assert len(found.stdout.splitlines()) == 1
    assert found.returncode == code
    assert watch(log, "--once", "--cost", "step", *options).returncode == 0


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [(9, "go on, loss 2 at 1 after 2 points"), (2, "the budget 2 is spent, loss 2 at 1")],
)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.filterwarnings("ignore:left out:haltwise.DataWarning")
def test_the_last_value_is_told_where_rows_of_training_follow(
    log: Path, budget: int, verdict: str, before: bool
) -> None:
    rows = ["0,,3", "1,,2"]
    if before:
        rows = [",,3"]  # nobody knows when
        verdict = verdict.replace("2 at 1", "nan at 2").replace("2 points", "0 points")
    log.write_text("\n".join(["step,train_loss,loss", "0,3.5,", *rows, "2,1.5,", ""]))
    found = watch(log, "--cost", "step", "--budget", budget, "--once")
    assert found.stdout == f"{log}: {verdict}\n"


@pytest.mark.parametrize("num", [2, 3, 5])
def test_a_rule_of_ones_own_sees_the_rows_that_a_monitor_is_updated_with(
    log: Path, num: int
) -> None:
    """Rows of training between validations are no points without progress."""
    values = [3.0, 2.0, 2.5, 2.4, 1.9, 2.0, 2.0, 2.0, 2.0]
    monitor, rows = patience(num), ["step,train_loss,loss", "0,3.9,", "1,3.8,"]
    for place, value in enumerate(values):
        step = 3 * place + 2
        rows += [f"{step},,{value}", f"{step + 1},{value - 0.1},", f"{step + 2},{value - 0.2},"]
        if monitor.reason is None:
            monitor.update(value, cost=step)
    log.write_text("\n".join([*rows, ""]))
    found = watch(log, "--once", "--cost", "step", "--level", 0.5 - num)
    assert monitor.should_stop == (num < 5)
    told = f"{monitor.curve.loss[-1]:g} at {monitor.curve.cost[-1]:g}"
    expected = f"give up, loss {told}: {monitor.reason}" if monitor.should_stop else "go on, "
    assert f"{log}: {expected}" in found.stdout


def test_half_a_line_is_not_read(log: Path) -> None:
    log.write_text("step,loss\n" + lines([3.0, 2.0]) + "2,1")  # of 2,1.9
    found = watch(log, "--once", "--target", 1, "--cost", "step", "--level", -9)
    assert found.stdout == f"{log}: go on, loss 2 at 1 after 2 points\n"


def test_a_file_is_read_where_it_lies_beside_others_of_its_run(tmp_path: Path) -> None:
    run = tmp_path / "mlruns" / "1" / "abc"
    for name in ("metrics", "params", "tags"):
        (run / name).mkdir(parents=True)
    (run / "meta.yaml").write_text("run_id: abc\n")
    points = [f"{1_760_000_000_000 + 1000 * step} {3.0 - step} {step}\n" for step in range(3)]
    (run / "metrics" / "loss").write_text("".join(points))
    for log in (run / "metrics" / "loss", tmp_path / "mlruns"):
        found = watch(log, "--once", "--target", 0, "--cost", "step")
        assert found.stdout == f"{log}: go on, loss 1 at 2 after 3 points\n", found.stderr


def test_half_a_line_is_not_read_in_a_folder_either(tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "up").symlink_to(tmp_path)  # which leads back to the folder
    (tmp_path / "last").symlink_to(folder)
    (folder / "inner" / "log.csv").write_text("step,loss\n" + lines([3.0, 2.0]) + "2,1")
    for log in (folder, tmp_path / "last"):
        found = watch(log, "--once", "--target", 1, "--cost", "step", "--level", -9)
        assert found.stdout == f"{log}: go on, loss 2 at 1 after 2 points\n"
    (folder / "inner" / "log.csv").write_text("step,loss\n0,word\n")
    found = watch(folder, "--once", "--target", 1, "--cost", "step")
    assert f"{folder / 'inner' / 'log.csv'}" in found.stderr


def test_a_folder_that_is_removed_meanwhile_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.csv").write_text("step,loss\n" + lines([3.0, 2.0, 1.0]))
    scan, removed = os.scandir, []

    def scandir(folder: Any) -> Any:
        if str(folder).endswith("checkpoint"):  # rotated between being listed and being looked into
            Path(folder).rmdir()
            removed.append(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    (run / "checkpoint").mkdir()
    found = watch(run, "--once", "--target", 0, "--cost", "step")
    assert found.stdout == f"{run}: go on, loss 1 at 2 after 3 points\n", found.stderr
    (run / "checkpoint").mkdir()
    assert read(run, cost="step", metric="loss").num_points.tolist() == [3]
    assert len(removed) == 2


@pytest.mark.filterwarnings("ignore:left out")
def test_a_resumed_run_is_judged_by_what_stands(log: Path) -> None:
    log.write_text("step,loss\n" + lines([3.0, 2, 9, 9, 9]) + lines([1.5, 1.2], 2))
    found = watch(log, "--once", "--cost", "step", "--level", -1.5)
    assert found.stdout.startswith(f"{log}: go on, loss 1.2 at 3 after 4 points")


def test_other_formats(tmp_path: Path) -> None:
    rows = [{"step": 10 * i, "loss": value} for i, value in enumerate([3.0, 2, 2, 2])]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": [*rows, {"step": 30, "f1": 1}], "max_steps": 90}))
    for log in (path, state):
        found = watch(log, "--once", "--cost", "step", "--level", -1.5, "--exit-code")
        assert found.stdout == f"{log}: give up, loss 2 at 30: nothing was better for 2 points\n"
        assert found.returncode == 3


@pytest.mark.parametrize("unit", [None, "hours"])
def test_a_log_and_a_monitor_give_up_at_the_same_point(log: Path, unit: str | None) -> None:
    """Also where the column is called as the unit of the learned rule: a name says no unit."""
    monitor = RunMonitor("training-runs", target=0.5, budget=100, cost_unit=unit)
    rows = "hours,loss\n"
    for hours in range(1, 100):
        loss = 1 + math.exp(-hours / 10)
        rows += f"{hours},{loss}\n"
        monitor.update(loss, cost=hours)
        if monitor.should_stop:
            break
    log.write_text(rows + f"{hours + 1},1\n")
    said = ("--cost-unit", unit) if unit else ()
    options = ("--metric", "loss", "--cost", "hours", "--target", 0.5, "--budget", 100, *said)
    found = haltwise("watch", log, "--once", *options, cwd=log.parent)
    assert found.stdout == f"{log}: give up, loss {loss:.4g} at {hours}: {monitor.reason}\n"
    assert (hours < 35) == (unit == "hours")


@pytest.mark.parametrize("header", ["step,train_loss,val_loss", "step,loss,other", "step,loss,"])
def test_what_comes_before_the_first_validation_is_not_judged(log: Path, header: str) -> None:
    log.write_text(f"{header}\n" + "".join(f"{i},{2 - i / 10},\n" for i in range(9)))
    command = ("watch", log, "--cost", "step", "--target", 1.5, "--budget", 99, "--once")
    with pytest.warns(DataWarning, match="nobody named them, so the metric is"):
        found = haltwise(*command, cwd=log.parent)
    assert found.returncode == 2
    assert "loss', but nothing yet on what is called validation data" in found.stderr
    named = haltwise(*command, "--metric", header.split(",")[1], cwd=log.parent)
    assert "the target 1.5 is met" in named.stdout


def test_nan_is_a_run_that_diverged_and_an_empty_cell_is_not(log: Path) -> None:
    for cell, last in (("nan", "inf at 1 after 2"), ("", "3 at 0 after 1")):
        log.write_text(f"step,loss\n0,3\n1,{cell}\n")
        found = watch(log, "--once", "--cost", "step")
        assert found.stdout == f"{log}: go on, loss {last} points\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--poll", 0), "--poll must be above 0, got 0"),
        (("--lost", 0.05), "give a level or successes lost, not both"),
        (("--rule", "no such"), "no such"),
        (("--metric", "accuracy"), "accuracy"),
        (LEARNED, "but there is none; name one (--target)"),
        ((*LEARNED, "--target", 1), "but there is none; name one (--budget), in units of the cost"),
    ],
    ids=str,
)
def test_bad_input_is_a_sentence(options: tuple[Any, ...], message: str, log: Path) -> None:
    log.write_text("step,loss\n" + lines([3.0]))
    found = watch(log, "--once", "--exit-code", *options)
    assert found.returncode == 2, found
    assert message in found.stderr


def test_a_missing_log_is_a_sentence(log: Path) -> None:
    found = watch(log, "--once")
    assert (found.returncode, found.stderr) == (2, f"haltwise: there is no file or folder {log}\n")


def test_ctrl_c_is_clean(log: Path) -> None:
    log.write_text("step,loss\n" + lines([3.0]))
    command = [sys.executable, "-m", "haltwise", "watch", str(log), "--rule", RULE, "--level", "-9"]
    with subprocess.Popen(
        [*command, "--metric", "loss", "--poll", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it may be ignored
    ) as process:
        assert process.stdout is not None
        assert "go on" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "haltwise: interrupted"
    assert "Traceback" not in err


@pytest.mark.parametrize(("last", "verdict"), [(95, "go on"), (100, "the budget 100 is spent")])
def test_a_run_that_has_spent_the_budget_of_its_log_has_ended(
    tmp_path: Path, last: int, verdict: str
) -> None:
    history = [{"step": step, "eval_loss": 3 * 0.97**step + 0.5} for step in range(5, last + 1, 5)]
    state = {"global_step": last, "max_steps": 100, "log_history": history}
    log = tmp_path / "trainer_state.json"
    log.write_text(json.dumps(state))
    done = haltwise(
        *("watch", log, "--rule", "training-runs", "--level", 1e-9, "--target", 0.3, "--once"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert verdict in done.stdout
