"""The command line as a user meets it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from haltwise import _kernels
from haltwise.cli import cli
from haltwise.cli.options import parse_settings
from haltwise.training import TrainingConfig

TINY = [
    *("--meta-steps", "6", "--batch-size", "8", "--horizon", "6", "--threads", "1"),
    *("--set", "num_validation=16", "--set", "validate_every=2"),
    *("--set", "head_steps=4", "--set", "num_recorded=16", "--set", "head_batch_size=8"),
    *("--set", "num_calibration=32"),
]


def haltwise(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "haltwise", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    result = haltwise("train", "regression-2d", "--out", "run", *TINY, cwd=directory)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "run"
    return directory / "run"


def test_train_evaluate_report(run: Path) -> None:
    result = haltwise(
        "evaluate", run, "--num-problems", 100, "--seed", 7, "--json", "out.json", cwd=run.parent
    )
    assert result.returncode == 0, result.stderr
    assert "logistic" in result.stdout
    summary = json.loads((run.parent / "out.json").read_text())
    assert summary["family"] == "regression-2d"
    assert summary["seed"] == 7
    assert summary["num_problems"] == 100
    result = haltwise("report", run, cwd=run.parent)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).stat().st_size > 100_000


def test_a_study_shows_both_accounts_and_writes_every_figure(tmp_path: Path) -> None:
    options = ["--seeds", 2, "--num-problems", 100, "--horizon", 8, "--json", "out.json"]
    result = haltwise("study", "regression-2d", *options, "--price", 0.3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["optimizer"] == document["family"] == "regression-2d"
    assert [entry["account"] for entry in document["results"]] == ["updates", "gradients"]
    for entry in document["results"]:
        assert f"cost counted in {entry['account']}" in result.stdout
        assert f"{entry['captured_gain']['rule']['mean']:.3f}" in result.stdout


def test_a_family_is_changed_and_the_run_remembers(tmp_path: Path) -> None:
    changed = ["--family-set", "num_hidden=5", "--family-set", "num_score=7"]
    options = [*changed, "--out", "run", *TINY, "--set", "num_recorded=8"]
    result = haltwise("train", "digits-mlp", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    sizes = ["--num-problems", 32, "--horizon", 2, "--json", "out.json"]
    result = haltwise("evaluate", "run", *sizes, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["family_settings"]["num_hidden"] == 5
    assert 0 <= summary["held_out"]["adam"]["accuracy"] <= 1
    page = haltwise("report", "run", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    assert "Learning without stopping" in (tmp_path / page.stdout.strip()).read_text("utf-8")
    for option, sentence in (
        (["--family-set", "width=5"], "unknown setting of digits-mlp 'width'"),
        (["--family-set", "num_hidden"], "--family-set takes NAME=JSON"),
        (["--images", tmp_path / "none"], "none has neither train-images"),
    ):
        result = haltwise(
            "train", "mnist-mlp" if "--images" in option else "digits-mlp", *option, cwd=tmp_path
        )
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert sentence in result.stderr


def test_heads_of_one_rule_are_compared_and_reported(tmp_path: Path) -> None:
    rule = ["--rule-from", "regression-2d", "--meta-steps", 0]
    trained = haltwise("train", "regression-2d", "--out", "run", *TINY, *rule, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    sizes = ["--num-problems", 100, "--horizon", 8]
    assert haltwise("evaluate", "run", *sizes, cwd=tmp_path).returncode == 0
    command = ["study", "run", "--head", "shipped=regression-2d", "--seeds", 2, *sizes]
    result = haltwise(*command, "--json", "run/heads.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Heads on regression-2d" in result.stdout
    assert "shipped" in result.stdout
    heads = json.loads((tmp_path / "run" / "heads.json").read_text())["results"][0]["heads"]
    page = haltwise("report", "run", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    text = Path(tmp_path / page.stdout.strip()).read_text(encoding="utf-8")
    assert "What the parts of a halting head are worth" in text
    assert f"{heads['shipped']['captured_gain']['mean']:.3f} ±" in text
    for head in ("shipped", "run=regression-2d"):  # no run is named; the name is taken
        assert haltwise("study", "run", "--head", head, cwd=tmp_path).returncode == 2


def test_a_head_is_trained_for_a_rule_named_on_the_command_line(tmp_path: Path) -> None:
    rule = ["--rule", "adam", "--set", 'rule_settings={"learning_rate": 0.15}']
    result = haltwise("train", "regression-2d", *rule, "--out", "run", *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    optimizer = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["optimizer"]
    assert optimizer["rule"] == "adam"
    assert optimizer["rule_settings"] == {"learning_rate": 0.15}
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_the_posterior_is_chosen_by_name(tmp_path: Path) -> None:
    command = ["train", "regression-2d", "--posterior", "graves", "--out", "run", *TINY]
    result = haltwise(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["posterior"] == "graves"
    result = haltwise("evaluate", "run", "--num-problems", 100, "--json", "out.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rules = json.loads((tmp_path / "out.json").read_text())["stop_rules"]
    assert rules["gradients"]["rule"]["kind"] == "PonderThreshold"


def test_list_names_families_and_shipped_optimizers(tmp_path: Path) -> None:
    result = haltwise("list", cwd=tmp_path)
    assert result.returncode == 0
    for name in ("regression-2d", "student-t-10d", "rosenbrock-2d", "diabetes"):
        assert name in result.stdout
    columns = {
        line.index(" parameters ") for line in result.stdout.splitlines() if " parameters " in line
    }
    assert len(columns) == 1


@pytest.mark.parametrize("command", ["", "train", "evaluate", "report", "explore", "list"])
def test_help_is_there(command: str, tmp_path: Path) -> None:
    result = haltwise(*command.split(), "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train regresion-2d", "did you mean 'regression-2d'"),
        ("train", "name a family"),
        ("train regression-2d --price 0", "price must be above 0, got 0"),
        ("train regression-2d --continuation 1.5", "continuation"),
        ("train regression-2d --horizon 0", "horizon must be at least 1, got 0"),
        ("train regression-2d --batch-size 0", "batch_size must be at least 1, got 0"),
        ("train regression-2d --set nonsense=1", "unknown setting 'nonsense'"),
        ("train regression-2d --set warmup=abc", "'abc' is not JSON"),
        ("train --resume nowhere", "holds no run"),
        ("evaluate regresion-2d", "unknown optimizer"),
        ("evaluate foreign.txt", "corrupt or no safetensors"),
        ("report nowhere", "haltwise evaluate"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    arguments: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "foreign.txt").write_text("no weights")
    result = haltwise(*arguments.split(), cwd=tmp_path)
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.txt"]  # nothing half-made


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = haltwise("train", "regression-2d", "--out", "file/run", *TINY, cwd=tmp_path)
    assert result.returncode == 2
    assert "file/run" in result.stderr


def test_interruption_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = ["train", "regression-2d", "--out", "run", *TINY, "--meta-steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "haltwise", *command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step-*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "haltwise train --resume run" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("experiment", ["regression", "mnist", "cifar10"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_command_of_an_experiment_is_one(
    experiment: str, quick: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--dry-run", "--threads", "1", *(["--quick"] if quick else [])]
    cli.main(["reproduce", experiment, "--out", str(tmp_path), *options], standalone_mode=False)
    out, err = capfd.readouterr()
    first, *steps = err.splitlines()
    assert first.startswith(f"{experiment} takes ")
    assert out.strip() == str(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
    for number, step in enumerate(steps, start=1):
        place, typed = step.split(" ", 1)
        program, name, *arguments = shlex.split(typed)
        assert (place, program) == (f"[{number}/{len(steps)}]", "haltwise")
        made = cli.commands[name].make_context(name, arguments).params
        if name == "train":
            parsed = parse_settings(made["settings"])
            given = {"rule_from": None} if made["rule_from"] else {}
            TrainingConfig.from_preset(made["preset"], made["family"], **{**parsed, **given})


def test_an_experiment_goes_on_where_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lstm").mkdir()
    (tmp_path / "lstm" / "config.json").write_text("{}")
    (tmp_path / "price-0.0101.json").write_text("{}")
    arguments = ["reproduce", "regression", "--out", str(tmp_path)]
    cli.main([*arguments, "--dry-run"], standalone_mode=False)
    steps = capfd.readouterr().err.splitlines()
    assert steps[1] == "[1/7] haltwise train --resume lstm --device cpu"
    assert steps[4] == "[4/7] price-0.0101.json is there"
    result = haltwise(*arguments, cwd=tmp_path)  # the first step fails, and so does the whole
    assert result.returncode == 2
    assert "[2/7]" not in result.stderr


def test_info_says_which_kernel_runs(tmp_path: Path) -> None:
    result = haltwise("info", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert {name.strip(): value.strip() for name, value in rows.items()}["LSTM on CPUs"] == (
        _kernels.implementation()
    )
