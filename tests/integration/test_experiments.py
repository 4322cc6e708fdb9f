"""The programs in experiments: weights from files of settings, sweeps, and the thesis' runs."""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from programs import program, run

from haltwise import InputError
from haltwise.cli import cli
from haltwise.models.loading import card_of, names, stop_names
from haltwise.training import TrainingSettings

# --- Shipped weights -----------------------------------------------------------------------------


def test_every_shipped_name_has_a_file_of_settings_that_train() -> None:
    weights = program("train_weights")
    known: dict[str, Path] = weights.recipes()
    rules = {path.stem for path in known.values() if path.parent.name == "rules"}
    shipped = {*names(), *stop_names()}
    assert known.keys() - rules == shipped
    for name, path in known.items():
        document = tomllib.loads(path.read_text())
        origin = document.pop("rule_from", None)
        preset, family = document.pop("preset", "act"), document.pop("family")
        settings = TrainingSettings.from_preset(preset, family, document)
        assert origin is None or origin.removeprefix("runs/") in known
        if name in shipped:
            card = card_of(name)
            assert card.family is not None
            made = (settings.family.name, settings.horizon, settings.price, settings.price_range)
            assert made == (card.family.name, card.horizon, card.price, card.price_range)
            assert settings.method.name == card.method.name
            if settings.method.name != "none":
                assert settings.halter == card.halter
            if origin is None:
                moved_by = card.rule or card.engine
                assert moved_by is not None
                assert settings.rule.name == moved_by.name


def test_what_a_recipe_begins_with_is_trained_first() -> None:
    weights = program("train_weights")
    known = weights.recipes()
    assert weights.in_order(["regression-2d-mode"], known) == [
        "regression-2d-rule",
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


# --- Sweeps --------------------------------------------------------------------------------------


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
        else:
            command = cli.get_command(click.Context(cli), name)
            assert command is not None
            command.make_context(name, arguments)  # refuses what is no option
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
    assert steps[1] == "[1/8] haltwise train --resume lstm --device cpu"
    assert steps[5] == "[5/8] price-0.0101.json is there"
    done = run("reproduce", *arguments, cwd=tmp_path)  # the first step fails, and so does the whole
    assert done.returncode == 2
    assert "[2/8]" not in done.stderr
