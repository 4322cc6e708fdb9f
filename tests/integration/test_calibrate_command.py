"""`haltwise calibrate`: what it chooses, what it writes, and what it leaves alone."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process import haltwise
from loops import record_runs
from tiny_runs import by_adam, finish

from haltwise import load
from haltwise._core.random import stream
from haltwise.models.files import save_model
from haltwise.models.loading import load_halting
from haltwise.rollout import record
from haltwise.stop_rules import (
    BASELINES,
    CostUnit,
    HazardThreshold,
    ReturnedIterate,
    StopPolicy,
    decisions,
    total_cost,
)
from haltwise.tasks import family
from haltwise.training import Trainer
from haltwise.training.run.directory import RunDirectory
from haltwise.training.validation import validation_prices

NUM = 200


def worst_policies(run: Path) -> None:
    """Have the weights for use never stop, as if calibration had gone wrong."""
    model = load(run)
    never = StopPolicy(HazardThreshold(1e6), ReturnedIterate.CURRENT)
    card = replace(model.card, policies=dict.fromkeys(CostUnit, never), provenance={})
    save_model(run / "best.safetensors", model.state_dict(), card)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Adam whose halter has learned little."""
    run = tmp_path_factory.mktemp("trained") / "run"
    finish(Trainer(by_adam(horizon=20, price=0.5, price_range=4.0), run))
    worst_policies(run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def files(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()
    }


def test_the_policy_chosen_is_better_on_fresh_problems_and_all_else_stays(run: Path) -> None:
    files_before, old = files(run), load(run)
    options = ["--num-problems", NUM, "--seed", 3, "--json", "x.json"]
    done = haltwise("calibrate", "run", *options, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads((run.parent / "x.json").read_text())
    after, new = files(run), load(run)
    assert after.pop("best.before.safetensors") == files_before.pop("best.safetensors")
    del after["best.safetensors"]
    assert after == files_before
    weights = new.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in old.state_dict().items())
    assert new.card.provenance["calibration"] == found
    changed = ("policies", "scales", "first_rounds", "provenance")
    documents = [model.card.to_json() for model in (old, new)]
    rest, other = ({k: v for k, v in each.items() if k not in changed} for each in documents)
    assert rest == other
    batch = family("regression-2d").sample(NUM, stream(3, "recalibration"))
    recorded = record(new.rule, batch, 20)
    for unit in CostUnit:
        for model, name in ((old, "held"), (new, found[unit.value]["chosen"])):
            rule, returns = model.policy(unit)
            scores = []
            for price in validation_prices(model.card):
                known = model.halting.attach(recorded, price)
                j = total_cost(known, decisions(rule, known), unit, returns, price=price)
                scores.append(j.double().mean().item() / price)
            shown = found[unit.value]["mean_j"][name]
            assert shown == pytest.approx(sum(scores) / 3, rel=1e-5)
        tried = {"held", "learned", "fixed_tuned", *BASELINES}
        assert found[unit.value]["mean_j"].keys() == tried
        assert found[unit.value]["chosen"] != "held"
        assert found[unit.value]["margin"] >= 0
    assert (new.card.scales is None) == (NUM < 1000)  # too few to know what is usual


def test_what_was_adopted_outlives_a_resumed_run_and_no_copy_is_overwritten(run: Path) -> None:
    first = (run / "best.safetensors").read_bytes()
    for _ in range(2):
        done = haltwise("calibrate", run, "--num-problems", 64, cwd=run.parent)
        assert done.returncode == 0, done.stderr
    adopted = (run / "best.safetensors").read_bytes()
    assert (run / "best.before.safetensors").read_bytes() == first
    assert (run / "best.before-2.safetensors").exists()
    finish(Trainer.resume(run))
    assert (run / "best.safetensors").read_bytes() == adopted
    worst_policies(run)  # but what nobody adopted is written again
    finish(Trainer.resume(run))
    assert load(run).policy().rule != HazardThreshold(1e6)


def test_nothing_is_lost_where_the_new_weights_cannot_be_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replaced = (run / "best.safetensors").read_bytes(), os.replace

    def full(self: Path, target: Path) -> None:
        if target.name == "best.safetensors":
            raise OSError(28, "No space left on device")
        replaced(self, target)

    monkeypatch.setattr(Path, "replace", full)
    done = haltwise("calibrate", run, "--num-problems", 64, cwd=run.parent)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert (run / "best.safetensors").read_bytes() == before


def test_a_monitor_is_calibrated_on_recorded_runs(stopper: Path, tmp_path: Path) -> None:
    """The loop stays where it is, so nothing else is returned."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((stopper / "best.safetensors").read_bytes())
    others = record_runs(tmp_path / "others", range(2000, 2080))
    done = haltwise("calibrate", copy, "--runs", others, "--json", "x.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["num_items"] == 80
    card = load_halting(copy).card
    assert card.policies[CostUnit.UPDATES].returns is ReturnedIterate.CURRENT
    assert card.provenance["calibration"] == found
    few = record_runs(tmp_path / "few", range(3000, 3040))
    refused = haltwise("calibrate", copy, "--runs", few, cwd=tmp_path)
    assert "at least 50 items, got 40" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("regression-2d",), "comes with the package and stays as it is; copy"),
        (("missing",), "unknown optimizer 'missing'"),
        (("run", "--num-problems", 49), "at least 50 items, got 49"),
        (("run", "--runs", "there"), "--runs are for monitors"),
        (("run", "--family", "regresion-2d"), "did you mean"),
        (("lstm",), "trained without halting"),
        (("monitor",), "calibrate it with --runs"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    arguments: tuple[object, ...], sentence: str, run: Path, stopper: Path, tmp_path: Path
) -> None:
    (tmp_path / "lstm").mkdir()
    weights = load("regression-2d-lstm")
    save_model(tmp_path / "lstm" / "best.safetensors", weights.state_dict(), weights.card)
    (tmp_path / "monitor").symlink_to(stopper)
    before = files(run)
    done = haltwise("calibrate", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert files(run) == before


def test_a_run_that_is_being_trained_is_left_alone(run: Path) -> None:
    training = RunDirectory(run, 1)
    training.lock()
    before = files(run)
    done = haltwise("calibrate", run, "--num-problems", 64, cwd=run.parent)
    assert "is being trained by another process" in done.stderr
    assert files(run) == before
    training.unlock()
