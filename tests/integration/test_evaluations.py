"""Held-out evaluations: what they hold, that they survive the disk, and what they refuse."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_cases import make_evaluation
from in_process import haltwise

from haltwise import FitWarning, FunctionBatch, InputError, OptimizerModel, load
from haltwise._core.files import load_tensors, save_tensors
from haltwise._core.json import from_json, to_json
from haltwise._core.random import stream
from haltwise.evaluation import Evaluation, EvaluationRecord, evaluate
from haltwise.evaluation.learners import LEARNERS
from haltwise.evaluation.optimizers import HAND_DESIGNED
from haltwise.evaluation.records import load_evaluations, save_evaluation
from haltwise.halting import HalterSettings
from haltwise.models import Card, Choice
from haltwise.models.loading import find
from haltwise.rollout import record
from haltwise.stop_rules import (
    CostUnit,
    HazardThreshold,
    ReturnedIterate,
    StopPolicy,
    costs,
    tune_baselines,
)
from haltwise.tasks import TaskBatch, TaskFamily, family
from haltwise.tasks.module import ModuleBatch


def untrained(method: str = "stick-breaking", **settings: Any) -> OptimizerModel:
    """A new model whose hazard stops at -2 log-odds, where it begins."""
    policies = {
        unit: StopPolicy(HazardThreshold(-2.0, unit.decision_time), returns)
        for unit, returns in (
            (CostUnit.UPDATES, ReturnedIterate.CURRENT),
            (CostUnit.GRADIENTS, ReturnedIterate.LEARNED),
        )
    }
    card = Card(
        method=Choice(method),
        price=0.05,
        horizon=8,
        rule=Choice("lstm", settings),
        halter=HalterSettings(),
        policies={} if method == "none" else policies,
        family=Choice("regression-2d"),
    )
    return OptimizerModel(card, stream(0)).requires_grad_(False)


def evaluated(models: dict[str, OptimizerModel], num_problems: int, **settings: Any) -> Evaluation:
    """The evaluation of the first, on `regression-2d` without learners if not told otherwise."""
    name = settings.pop("family", "regression-2d")
    given = {"price": 0.05, "horizon": 8, "seed": 5, "learners": False, **settings}
    return evaluate(models, family(name), family_name=name, num_problems=num_problems, **given)


def least_squares(x: Any, y: Any) -> Any:
    """A learner as those of `haltwise.evaluation.learners`."""
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    return lambda new: new @ weights


def test_an_evaluation_holds_what_it_promises_and_survives_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = {
        "mine": load("regression-2d"),
        "lstm": untrained("none"),
        "thesis": load("regression-2d-thesis"),
    }
    for name in ("_boosted", "_regression"):  # trees take long, and are judged elsewhere
        monkeypatch.setattr(f"haltwise.evaluation.learners.{name}", least_squares)
    with pytest.warns(FitWarning, match="thesis was trained at a price of .*; at 0.05 it stops"):
        found = evaluated(models, 100, learners=True)
    record, excess = found.record, found.arrays["excess"].double()
    table = costs(excess, 0.05)
    for unit, stopping in record.stopping.items():
        rules = {"learned", "calibrated", "gradient_norm", "plateau", "patience", "logistic"}
        rules |= {"fixed", "oracle", *LEARNERS} | (
            {"after_gradient"} if unit is CostUnit.GRADIENTS else set()
        )
        assert set(stopping.rules) == rules
        assert stopping.judged == "learned"
        for name, figures in stopping.rules.items():
            assert figures.j.value >= stopping.rules["oracle"].j.value - 1e-9, name
            if name in ("fixed", "oracle"):
                continue
            key = f"{unit.value}.{name}"
            j = found.arrays[f"j.{key}"]
            assert figures.j.value == pytest.approx(j.mean().item())
            mean_cost = found.arrays[f"cost.{key}"].double().mean().item()
            assert figures.mean_cost == pytest.approx(mean_cost)
            assert figures.mean_excess == pytest.approx(figures.j.value - 0.05 * mean_cost)
        assert stopping.rules["fixed"].j.value == pytest.approx(table.mean(0).min().item())
        assert stopping.rules["oracle"].j.value == pytest.approx(table.amin(1).mean().item())
        assert stopping.reliability is not None
        assert stopping.frontier.settings
    cost = found.arrays["cost.updates.learned"]
    at_stop = excess.gather(1, cost.unsqueeze(1)).squeeze(1)
    own = record.stopping[CostUnit.UPDATES].stops
    assert own.mean_excess == pytest.approx(at_stop.mean().item())
    assert found.arrays["posterior"].sum(1) == pytest.approx(torch.ones(100), abs=1e-4)
    assert set(record.curves) == {*models, *HAND_DESIGNED}
    assert set(record.others) == {"thesis"}
    assert "calibrated" in record.others["thesis"][CostUnit.UPDATES].rules
    assert all(len(curve.mean) == 9 for curve in record.curves.values())
    gradients = record.stopping[CostUnit.GRADIENTS]
    spent = int(found.arrays["cost.gradients.learned"].sum())
    assert record.execution.num_gradients == spent
    assert record.execution.num_gradients_fixed == 100 * gradients.fixed_budget
    assert sum(record.execution.outcomes.values()) == 100
    save_evaluation(record, found.arrays, tmp_path)
    ((loaded, arrays),) = load_evaluations(tmp_path)
    assert to_json(loaded) == to_json(record)
    assert all(torch.equal(value, found.arrays[name]) for name, value in arrays.items())


def test_the_iterate_that_a_holding_model_returns_is_judged() -> None:
    model = untrained()
    assert model.halting.halter is not None
    model.halting.halter.biases[-1][2] = 8.0  # log-odds of holding
    found = evaluated({"mine": model}, 100)
    cost = found.arrays["cost.gradients.learned"]
    stopped = cost < 8
    assert stopped.any()
    excess = found.arrays["excess"].gather(1, (cost - 1).unsqueeze(1)).squeeze(1)
    expected = excess.double() + 0.05 * cost
    torch.testing.assert_close(found.arrays["j.gradients.learned"][stopped], expected[stopped])


def test_networks_are_judged_on_minibatches_and_test_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The means stand beside what a loop over the problems by hand gives."""
    monkeypatch.setattr("haltwise.evaluation.optimizers.LEARNING_RATES", (0.01, 0.1, 1.0))
    model = untrained(initial_descent=True, output_scale=0.03)
    record = evaluated({"mine": model}, 32, family="digits-mlp", horizon=3).record
    assert record.lbfgs == []  # its line search cannot work on minibatches
    batch = family("digits-mlp").sample(32, stream(5, "test"))
    assert isinstance(batch, ModuleBatch)
    params, state, seen = batch.start, model.rule.init(batch.start), []
    with torch.no_grad():
        for step in range(4):
            loss, grad = batch.observe(params, step)
            seen.append(float(loss.double().mean()))
            if step < 3:
                update, _, state = model.rule.update(grad, state)
                params = params + update
    assert record.curves["mine"].observed == pytest.approx(seen, rel=1e-5)
    assert batch.task.test is not None
    inputs, targets = batch.task.test.take(torch.arange(360), torch.float32)
    right = []
    for problem in params:
        outputs, _ = batch.task.call(problem, {}, inputs)
        right.append(float((outputs.argmax(1) == targets).double().mean()))
    found = record.curves["mine"].held_out
    assert found is not None
    assert found.accuracy == pytest.approx(sum(right) / 32, rel=1e-5)
    assert record.execution.held_out is not None
    assert record.execution.held_out.loss > 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"price": 0.0}, "price must be a finite number above 0, got 0"),
        ({"horizon": 0}, "at least 1 step, got 0"),
        ({"num_problems": 31}, "num_problems must be at least 32, got 31"),
        ({"models": {"adam": untrained()}}, "adam is the name of a hand-designed"),
        ({"models": {"lstm": untrained("none")}}, "lstm was trained without halting"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"models": {"mine": untrained()}, "num_problems": 100, **settings}
    with pytest.raises(InputError, match=sentence):
        evaluated(**given)


# ----------------------------------------------------------------------------------------- files


def test_a_directory_without_records_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="haltwise evaluate"):
        load_evaluations(tmp_path)


def test_a_kill_leaves_one_evaluation_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever writing the second ends, the record found belongs to the arrays found."""
    first = make_evaluation()
    second = replace(
        first,
        record=replace(first.record, num_problems=NUM_OTHER),
        arrays={**first.arrays, "excess": first.arrays["excess"] + 1},
    )
    path = save_evaluation(first.record, first.arrays, tmp_path)

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_evaluation(second.record, second.arrays, tmp_path)
    for expected in (first, second):
        ((record, arrays),) = load_evaluations(tmp_path)
        assert record.num_problems == expected.record.num_problems
        assert torch.equal(arrays["excess"], expected.arrays["excess"])
        assert save_evaluation(second.record, second.arrays, tmp_path) == path


NUM_OTHER = 41


def test_damaged_records_are_refused_in_a_sentence(tmp_path: Path) -> None:
    found = make_evaluation()
    path = save_evaluation(found.record, found.arrays, tmp_path)
    document = load_tensors(path)[1]["evaluation"]
    changes: list[dict[str, Any]] = [
        {"price": "dear"},
        {"curves": []},
        {"seed": True},
        {"unknown": 1},
        {"stopping": {"seconds": {}}},
    ]
    for change in changes:
        save_tensors(path, found.arrays, {"evaluation": document | change})
        with pytest.raises(InputError, match="no EvaluationRecord"):
            load_evaluations(tmp_path)
    del document["horizon"]
    with pytest.raises(InputError, match="horizon"):
        from_json(EvaluationRecord, document)


@pytest.mark.parametrize("broken", [0.5, 1.0])
def test_what_does_not_stay_finite_is_left_out_or_refused(broken: float) -> None:
    """Also of the problems that L-BFGS is run on, whose line search knows no NaN."""

    @dataclass(frozen=True)
    class Bowls(TaskFamily):
        dim = 2

        def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
            start = torch.randn(num_problems, 2, generator=generator)
            away = torch.zeros(num_problems)
            away[: int(broken * num_problems)] = math.nan
            return FunctionBatch(
                start, lambda params, away: params.square().sum(1) + away, {"away": away}
            )

    given: dict[str, Any] = {
        "family_name": "bowls",
        "price": 0.05,
        "horizon": 4,
        "seed": 0,
        "learners": False,
    }
    if broken == 1:
        with pytest.raises(InputError, match="finite"):
            evaluate({"mine": load("regression-2d")}, Bowls(), num_problems=32, **given)
        return
    with pytest.warns(FitWarning, match="mine was trained at"):
        found = evaluate(
            {"mine": load("regression-2d")}, Bowls(), num_problems=32, **{**given, "price": 9.0}
        )
    record = found.record
    assert [each.num_left_out for each in record.stopping.values()] == [16, 16]
    assert record.num_lbfgs == 16
    assert np.isfinite(record.lbfgs).all()
    sound = next(iter(record.stopping.values())).rules["oracle"].mean_excess
    for curve in record.curves.values():
        assert curve.num_nonfinite == 16
        assert np.isfinite([curve.mean, curve.median, curve.low, curve.high, curve.observed]).all()
        assert curve.mean[0] >= sound > 0


def test_what_cannot_be_kept_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make_evaluation()
    monkeypatch.setattr("haltwise.cli.evaluate.evaluate", lambda *_, **__: found)
    (tmp_path / "runs").write_text("")
    done = haltwise("evaluate", "regression-2d", cwd=tmp_path)
    assert (done.returncode, "cannot create runs/regression-2d" in done.stderr) == (2, True)
    assert "captured gain" in done.stdout


def test_the_command_prints_and_writes_what_it_measured(tmp_path: Path) -> None:
    options = ["--num-problems", 64, "--horizon", 8, "--seed", 7, "--no-learners"]
    options += ["--json", "out.json"]
    done = haltwise("evaluate", "regression-2d", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = from_json(EvaluationRecord, json.loads((tmp_path / "out.json").read_text()))
    ((saved, _),) = load_evaluations(tmp_path / "runs" / "regression-2d")
    assert to_json(saved) == to_json(record)
    assert {"regression-2d", "regression-2d-lstm"} < set(record.curves)
    for unit, stopping in record.stopping.items():
        assert f"counted in {unit.value}" in done.stdout
        assert f"{stopping.stops.j.value:#.3g}" in done.stdout
    alone = haltwise("evaluate", "regression-2d-lstm", *options, cwd=tmp_path)
    assert alone.returncode == 2
    assert "without halting" in alone.stderr
    twice = haltwise("evaluate", "regression-2d", "--compare", "regression-2d", cwd=tmp_path)
    assert twice.returncode == 2
    assert "a name of its own" in twice.stderr


def test_the_record_of_a_file_is_kept_in_runs_and_not_beside_it(tmp_path: Path) -> None:
    folder, options = tmp_path / "theirs", ["--num-problems", 64, "--horizon", 8]
    options += ["--no-learners", "--baseline", "none"]
    folder.mkdir()
    weights = folder / "mine.safetensors"
    weights.write_bytes(find("regression-2d").read_bytes())
    shipped = find("regression-2d")
    before = {path: sorted(path.iterdir()) for path in (folder, shipped.parent)}
    for path in (weights, shipped):
        done = haltwise("evaluate", path, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert sorted(path.parent.iterdir()) == before[path.parent]
        assert f"runs/{path.stem}/evaluation-" in done.stdout
        assert len(load_evaluations(tmp_path / "runs" / path.stem)) == 1


@pytest.mark.parametrize("command", ["calibrate", "certify"])
def test_no_command_changes_a_shipped_file(command: str, tmp_path: Path) -> None:
    path = find("regression-2d-mode")
    before = path.read_bytes(), sorted(path.parent.iterdir())
    asked = ["--risk", "excess", "--level", 0.5] if command == "certify" else []
    done = haltwise(command, path, "--num-problems", 64, *asked, cwd=tmp_path)
    assert done.returncode == 2
    assert "comes with the package and stays as it is" in done.stderr
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before


def test_rules_are_tuned_on_the_tuning_problems() -> None:
    model, unit = load("regression-2d"), CostUnit.GRADIENTS
    found = evaluated({"mine": model}, 64)
    batch = family("regression-2d").sample(64, stream(5, "tune"))
    tuned = tune_baselines(record(model.rule, batch, 8), unit, 0.05)
    for name, each in tuned.items():
        rule, returns = each.policy
        shown = found.record.stopping[unit].rules[name].policy
        assert shown == f"{rule!r}, returns {returns.value}"
