"""The command line as a user meets it: training, progress, interruption, lists and help."""

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import click
import forked
import pytest
from in_process import haltwise as run_here
from tiny_runs import ALL, TINY_OPTIONS, tiny

from haltwise import InputError, _kernels, load
from haltwise._core import progress
from haltwise.cli import run
from haltwise.cli.progress import run_trainer
from haltwise.models.loading import names
from haltwise.tasks import families
from haltwise.training import Trainer, TrainingSettings


def settings_of(run: Path) -> TrainingSettings:
    return TrainingSettings.from_json(json.loads((run / "config.json").read_text())["settings"])


def test_a_training_leaves_a_run_and_prints_its_directory(tmp_path: Path) -> None:
    command = ("train", "regression-2d", "--out", "run", *TINY_OPTIONS)
    done = forked.run(*command, cwd=tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("run\n", "")
    assert load(tmp_path / "run").card.provenance["command"].startswith("haltwise train reg")
    again = run_here("train", "regression-2d", "--out", "run", *TINY_OPTIONS, cwd=tmp_path)
    assert (again.returncode, "holds a run already" in again.stderr) == (2, True)
    for options in (["--continue", "--out", "run", *TINY_OPTIONS], ["--resume", "run"]):
        family = [] if "--resume" in options else ["regression-2d"]
        gone_on = run_here("train", *family, *options, cwd=tmp_path)
        assert (gone_on.returncode, gone_on.stdout) == (0, "run\n")
    other = [*TINY_OPTIONS, "--continue", "--seed", 3]
    drifted = run_here("train", "regression-2d", "--out", "run", *other, cwd=tmp_path)
    assert "holds a run of other settings (seed: 0 -> 3)" in drifted.stderr


def test_resuming_takes_all_settings_from_the_run(tmp_path: Path) -> None:
    for options, named in (
        (["regression-2d"], "FAMILY"),
        (["--price", 3, "--out", "x"], "--out and options for settings"),
        (["--preset", "lstm"], "--preset"),
    ):
        done = run_here("train", "--resume", "run", *options, cwd=tmp_path)
        assert done.stderr == (
            f"haltwise: --resume takes its settings from the run; drop {named}\n"
        )


def test_a_family_is_changed_and_the_run_remembers(tmp_path: Path) -> None:
    changed = ["--family.num-hidden", 5, "--family.num-score", 7]
    options = [*changed, "--out", "run", *TINY_OPTIONS, "--halting.num-recorded", 8]
    done = run_here("train", "digits-mlp", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    family = load(tmp_path / "run").card.family
    assert family is not None
    assert (family.name, family.settings["num_hidden"]) == ("digits-mlp", 5)
    assert family.settings["num_layers"] == 1  # what differs not is on the card, too


def test_a_rule_method_and_estimator_are_chosen_by_name(tmp_path: Path) -> None:
    options = ["--rule", "adam", "--rule.learning-rate", 0.15, "--method", "graves"]
    options += ["--method.epsilon", 0.05, "--joint.estimator.segment", 3]
    done = run_here("train", "regression-2d", *options, "--out", "run", *TINY_OPTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = settings_of(tmp_path / "run")
    assert (settings.rule.name, settings.rule.settings) == ("adam", {"learning_rate": 0.15})
    assert (settings.method.name, settings.method.settings) == ("graves", {"epsilon": 0.05})
    assert settings.joint.estimator.settings == {"segment": 3}
    assert load(tmp_path / "run").card.method.name == "graves"


def test_a_halter_begins_from_another(tmp_path: Path) -> None:
    options = ["--halter-from", "regression-2d-mode", "--rule-from", "regression-2d"]
    options += ["--joint.num-steps", "0"]
    done = run_here("train", "regression-2d", *TINY_OPTIONS, *options, "--out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings, shipped = settings_of(tmp_path / "run"), load("regression-2d-mode").card
    assert (settings.halter, settings.method) == (shipped.halter, shipped.method)
    clash = run_here("train", "regression-2d", *options, "--halter.width", 3, cwd=tmp_path)
    assert clash.stderr == "haltwise: halter_from brings its own settings; drop halter\n"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_here("train", "regression-2d", "--out", "file/run", *TINY_OPTIONS, cwd=tmp_path)
    assert done.returncode == 2
    assert "file/run" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train regresion-2d", "did you mean 'regression-2d'"),
        ("train", "name a family"),
        ("train --resume nowhere", "holds no run"),
        ("train regression-2d --rule none", "are moved by an update rule, and rule is none"),
        ("train regression-2d --rule-from nowhere", "unknown optimizer"),
        ("train-monitor .", "Missing option '--price'"),
        ("train-monitor . --price 1", "there are no recorded runs in"),
        ("train-monitor . --price 1 --test-runs ./", "--test-runs . are the runs that it learns"),
        ("train regression-2d --out=", "'--out': it is empty; name a file or a directory"),
        ("evaluate regression-2d --json /dev/null/x.json", "/dev/null cannot be written in; name"),
        ("diagnose regression-2d --json .", "'--json': . is a directory; name a file in it"),
        ("trian regression-2d", "No such command 'trian'"),
        ("train regression-2d --device nowhere", "the device 'nowhere' cannot be used"),
        (
            "train regression-2d --threads 0",
            "--threads must be at least 1 and at most 1,024, got 0",
        ),
        ("train regression-2d --threads 99999999999", "at most 1,024, got 99999999999"),
        ("train regression-2d --set batch_size=32", "No such option '--set'"),
        ("train regression-2d --config \x1b]0;mine\x07", r"no file \x1b]0;mine\x07"),
        ("evaluate regression-2d --num-problems 1000000000000000", "out of memory"),
        ("evaluate regression-2d --price 1e300", "price must be at most 3.4e+38"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    arguments: str, expected: str, tmp_path: Path
) -> None:
    done = run_here(*arguments.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # nothing half-made


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
        RuntimeError("other"),
    ],
)
def test_a_lack_of_memory_is_one_sentence_and_another_error_is_not(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fail() -> None:
        raise error

    if str(error) == "other":
        with pytest.raises(RuntimeError, match="other"):
            run(fail, [])
        return
    assert run(fail, []) == 2
    assert capsys.readouterr().err.startswith("haltwise: out of memory; ask for fewer")


# --- Progress and interruption -------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3, 11])
def test_where_nobody_watches_a_line_comes_every_ten_seconds(
    seconds: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A look at the clock comes `seconds` after the one before, one a meta-step and recording."""
    now = iter(range(0, 10_000, seconds))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr("haltwise.training.sources._RECORDED_COORDINATES", 16)
    trainer = Trainer(tiny(), tmp_path / "run")
    run_trainer(trainer)
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'run'}\n"
    lines = err.splitlines()
    looks = 14 + 3 + 2 + 4  # meta-steps; recorded, validated and calibrated 8 at a time
    assert len(lines) == (looks if seconds == 11 else looks * seconds // 12)
    steps = [line for line in lines if line.startswith("meta-step ")]
    form = re.compile(
        r"meta-step \d+ of 14, (\d+ min )?\d+ s: meta-loss .*, validated J .*, stops at .*"
    )
    assert all(map(form.fullmatch, steps))
    recorded = [line for line in lines if line.startswith("recorded ")]
    assert len(steps) + len(recorded) == len(lines)
    if seconds == 11:
        done = [line.partition(",")[0] for line in recorded[:3]]
        assert done == ["recorded 8 of 24", "recorded 16 of 24", "recorded 24 of 24"]


def test_training_goes_on_where_what_it_shows_to_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich exits on a broken pipe, and a closed terminal is an error of writing."""
    errors = itertools.cycle([SystemExit(1), OSError("Input/output error")])

    def fail(*_: object, **__: object) -> None:
        raise next(errors)

    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setattr("rich.console.Console.print", fail)
    trainer = Trainer(tiny(), tmp_path)
    run_trainer(trainer)
    assert trainer.step == ALL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_a_checkpoint_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = ["train", "regression-2d", "--out", "run", *TINY_OPTIONS]
    # A power cut would leave none before step 100.
    command += ["--joint.num-steps", "100000", "--validation.every", "50000"]
    training = forked.Command(*command, cwd=tmp_path, folder=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "config.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    os.kill(training.pid, number)
    code, _, errors = training.wait(60)
    assert code == 130
    assert "haltwise train --resume run" in errors
    assert "Traceback" not in errors
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert Trainer.resume(tmp_path / "run").step == int(checkpoint.stem.removeprefix("step-"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_commands_are_interrupted_in_a_sentence(
    number: signal.Signals, tmp_path: Path
) -> None:
    """What is half written is removed."""
    code = f"""
import os
from pathlib import Path
from haltwise._core import files
import click
from haltwise.cli import main
os.fsync = lambda _: os.kill(os.getpid(), {int(number)})
main(click.Command("write", callback=lambda: files.write_atomically(Path("x"), b"whole")))
"""
    (tmp_path / "here").mkdir()
    done = forked.run(code, cwd=tmp_path / "here", folder=tmp_path, work=forked.code)
    assert (done.returncode, done.stderr.strip()) == (130, "haltwise: interrupted")
    assert not list((tmp_path / "here").iterdir())


# --- Looking around ------------------------------------------------------------------------------


def test_list_names_families_and_shipped_optimizers_in_a_terminal(tmp_path: Path) -> None:
    done = run_here("list", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for name in (*families(), *names()):
        assert any(line.split()[:1] == [name] for line in lines), name
    assert max(map(len, lines)) <= 80
    begun = [line for line in lines if not line.startswith(" " * 5)]  # others go on with a family
    assert len(set(begun)) == len(begun)  # each sentence once
    done = run_here("list", "student", cwd=tmp_path)
    assert done.stdout.count("student-t-10d") == 3
    assert "cifar" not in done.stdout
    done = run_here("list", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", ["", "train", "train-monitor", "list", "info"])
def test_help_is_there(command: str, tmp_path: Path) -> None:
    done = run_here(*command.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_info_says_which_kernel_runs(tmp_path: Path) -> None:
    done = run_here("info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert {name.strip(): value.strip() for name, value in rows.items()}["LSTM, MLP on CPUs"] == (
        _kernels.implementation()
    )


def test_an_unknown_shipped_name_is_suggested() -> None:
    with pytest.raises(InputError, match="did you mean 'regression-2d'"):
        load("regresion-2d")
