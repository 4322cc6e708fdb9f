"""Programs of experiments run to their end, and ended before."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import forked
import pytest
from programs import EXPERIMENTS, be_program, be_program_and_its_commands, run

from haltwise import load

# Of a rule alone: a process then ends without importing what calibrates a halter.
TRAINING = (
    *("regression-2d", "--preset", "lstm", "--joint.batch-size", "8", "--horizon", "6"),
    *("--joint.num-steps", "6", "--validation.every", "2", "--validation.num-problems", "16"),
)


def test_a_recipe_is_trained_with_what_it_begins_with_and_goes_on(tmp_path: Path) -> None:
    arguments = ["regression-2d-mode", "--quick", "--root", "here"]
    train_weights = partial(run, "train_weights", cwd=tmp_path, work=be_program_and_its_commands)
    done = train_weights(*arguments)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "here" / "runs"
    names = ["regression-2d", "regression-2d-mode", "regression-2d-rule"]
    assert sorted(path.name for path in runs.iterdir()) == names
    models = [load(runs / name) for name in ("regression-2d-rule", "regression-2d-mode")]
    states = [model.rule.state_dict() for model in models]  # type: ignore[attr-defined]
    assert all(bool((value == states[1][name]).all()) for name, value in states[0].items())
    assert models[1].card.method.name == "softmax"
    best = runs / "regression-2d" / "best.safetensors"
    before = best.stat().st_mtime_ns
    again = ["regression-2d", *arguments[1:]]
    assert train_weights(*again).returncode == 0
    assert best.stat().st_mtime_ns == before


def test_failures_are_reported_and_the_rest_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seed-1").write_text("in the way")
    command = [*TRAINING, "--seeds", "0..1", "--jobs", 2, "--out", "out"]
    done = run("sweep", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("1 of 2 trainings failed: seed-1")
    best = tmp_path / "out" / "seed-0" / "best.safetensors"
    before = best.stat().st_mtime_ns
    (tmp_path / "out" / "seed-1").unlink()
    done = run("sweep", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert best.stat().st_mtime_ns == before
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [entry["name"] for entry in document["runs"]] == ["seed-0", "seed-1"]
    assert [entry["error"] for entry in document["runs"]] == [None, None]
    figures = [entry["metrics"]["mean_loss"] for entry in document["runs"]]
    assert figures[0] != figures[1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for trainings in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_ended_ends_its_trainings_after_a_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [*TRAINING, "--seeds", "0..3", "--jobs", "2", "--out", "out"]
    command += ["--joint.num-steps", "100000", "--validation.every", "50000"]
    program = EXPERIMENTS / "sweep.py"
    process = forked.Command(program, *command, cwd=tmp_path, folder=tmp_path, work=be_program)
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("out/seed-*/config.json"))) < 2:
        assert process.runs()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    trainings = _children(process.pid)
    assert len(trainings) == 2
    os.kill(process.pid, number)
    done = process.wait(100)
    assert done.returncode == 130
    assert done.stderr.strip().endswith("haltwise: interrupted")
    assert not [pid for pid in trainings if Path(f"/proc/{pid}").exists()]
    for seed in (0, 1):
        assert list((tmp_path / "out" / f"seed-{seed}" / "checkpoints").iterdir())
    assert not (tmp_path / "out" / "seed-2").exists()  # no more are begun


def _children(pid: int) -> set[int]:
    """Of every thread: it is the one that forked whose children they are."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found
