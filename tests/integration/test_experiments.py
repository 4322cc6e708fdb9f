"""The programs in experiments: weights from files of settings, sweeps, and the thesis' runs."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_runs import TINY_OPTIONS

from haltwise import InputError, load
from haltwise.cli import cli
from haltwise.models.loading import names
from haltwise.training import TrainingSettings

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


sys.path.append(str(EXPERIMENTS))  # where their programs find each other


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXPERIMENTS / f"{name}.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


# --- Shipped weights -----------------------------------------------------------------------------


def test_every_shipped_name_has_a_file_of_settings_that_train() -> None:
    weights = program("train_weights")
    known: dict[str, Path] = weights.recipes()
    rules = {path.stem for path in known.values() if path.parent.name == "rules"}
    assert known.keys() - rules == set(names())
    for name, path in known.items():
        document = tomllib.loads(path.read_text())
        origin = document.pop("rule_from", None)
        preset, family = document.pop("preset", "act"), document.pop("family")
        settings = TrainingSettings.from_preset(preset, family, document)
        assert origin is None or origin.removeprefix("runs/") in known
        if name in names():
            card = load(name).card
            assert card.family is not None
            made = (settings.family.name, settings.horizon, settings.price, settings.price_range)
            assert made == (card.family.name, card.horizon, card.price, card.price_range)
            assert settings.method.name == card.method.name
            if settings.method.name != "none":
                assert settings.halter == card.halter
            if origin is None:
                assert card.rule is not None
                assert settings.rule.name == card.rule.name


def test_what_a_recipe_begins_with_is_trained_first() -> None:
    weights = program("train_weights")
    known = weights.recipes()
    assert weights.in_order(["regression-2d-mode"], known) == [
        "regression-2d",
        "regression-2d-mode",
    ]
    ordered = weights.in_order(list(known), known)
    assert sorted(ordered) == sorted(known)
    for name, path in known.items():
        for other in weights.needs(tomllib.loads(path.read_text())):
            assert ordered.index(other) < ordered.index(name)
    with pytest.raises(InputError, match="unknown recipe 'regresion-2d'; did you mean"):
        weights.in_order(["regresion-2d"], known)


def test_a_recipe_is_trained_with_what_it_begins_with_and_goes_on(tmp_path: Path) -> None:
    arguments = ["regression-2d-mode", "--quick", "--root", "here"]
    done = run("train_weights", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "here" / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["regression-2d", "regression-2d-mode"]
    models = [load(runs / name) for name in ("regression-2d", "regression-2d-mode")]
    states = [model.rule.state_dict() for model in models]  # type: ignore[attr-defined]
    assert all(bool((value == states[1][name]).all()) for name, value in states[0].items())
    assert models[1].card.method.name == "softmax"
    best = runs / "regression-2d-mode" / "best.safetensors"
    before = best.stat().st_mtime_ns
    assert run("train_weights", *arguments, cwd=tmp_path).returncode == 0
    assert best.stat().st_mtime_ns == before


# --- Sweeps --------------------------------------------------------------------------------------


def test_failures_are_reported_and_the_rest_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seed-1").write_text("in the way")
    command = ["regression-2d", "--seeds", "0..1", "--jobs", 2, "--out", "out", *TINY_OPTIONS]
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seeds", "a"], "--seeds must be numbers"),
        (["--seeds", "3..1"], "--seeds must be numbers"),
        (["--prices", "x"], "--prices must be numbers"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--seed", "3"], "a sweep sets --seed itself"),
        (["--seed=3"], "a sweep sets --seed itself"),
        (["--out", "/dev/null/x"], "cannot create"),
    ],
)
def test_impossible_sweeps_are_refused(options: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        CliRunner().invoke(
            program("sweep").sweep, ["regression-2d", *options], catch_exceptions=False
        )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for trainings in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_ended_ends_its_trainings_after_a_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = ["regression-2d", "--seeds", "0..3", "--jobs", "2", "--out", "out", *TINY_OPTIONS]
    command += ["--joint.num-steps", "100000", "--validation.every", "50000"]
    process = subprocess.Popen(
        [sys.executable, str(EXPERIMENTS / "sweep.py"), *command],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("out/seed-*/config.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(1)
        trainings = _children(process.pid)
        assert len(trainings) == 2
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip().endswith("haltwise: interrupted")
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


# --- The thesis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", ["regression", "mnist", "cifar10"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_command_of_an_experiment_is_one(
    experiment: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--dry-run", "--threads", "1", *(["--quick"] if quick else [])]
    result = CliRunner().invoke(
        program("reproduce").reproduce, [experiment, "--out", str(tmp_path), *options]
    )
    assert result.exit_code == 0, result.output
    first, *steps = result.stderr.splitlines()
    assert first.startswith(f"{experiment} takes ")
    assert result.stdout.strip() == str(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
    seen: list[Any] = []
    monkeypatch.setattr("haltwise.cli.train.run_trainer", lambda *_: None)
    monkeypatch.setattr(
        "haltwise.cli.train.Trainer", lambda settings, *_, **__: seen.append(settings)
    )
    for number, step in enumerate(steps, start=1):
        place, typed = step.split(" ", 1)
        program_name, name, *arguments = shlex.split(typed)
        assert (place, program_name) == (f"[{number}/{len(steps)}]", "haltwise")
        if name == "train":
            if "--rule-from" in arguments:  # it is not there yet
                arguments[arguments.index("--rule-from") + 1] = "mnist-mlp-lstm"
            cli.main([name, *arguments], standalone_mode=False)
    assert [settings.preset for settings in seen][:2] == ["lstm", "act"]
    expected = {"regression": (3000, 400), "mnist": (2500, 100), "cifar10": (1500, 100)}
    assert seen[1].halting.num_steps == expected[experiment][quick]


def test_an_experiment_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "lstm").mkdir()
    (tmp_path / "lstm" / "config.json").write_text("{}")
    (tmp_path / "price-0.0101.json").write_text("{}")
    arguments = ["regression", "--out", str(tmp_path)]
    dry = run("reproduce", *arguments, "--dry-run", cwd=tmp_path)
    steps = dry.stderr.splitlines()
    assert steps[1] == "[1/7] haltwise train --resume lstm --device cpu"
    assert steps[4] == "[4/7] price-0.0101.json is there"
    done = run("reproduce", *arguments, cwd=tmp_path)  # the first step fails, and so does the whole
    assert done.returncode == 2
    assert "[2/7]" not in done.stderr
