"""Studies over seeds: their figures are those of every seed by itself."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from in_process import haltwise
from scipy.stats import spearmanr

from haltwise import InputError, OptimizerModel, load
from haltwise._core.json import from_json, to_json
from haltwise._core.random import stream
from haltwise.evaluation import StudyRecord, study
from haltwise.evaluation.baselines import choose_policies
from haltwise.models import Card, Choice
from haltwise.processes import Trajectory
from haltwise.report.formats import interval
from haltwise.rollout import record
from haltwise.stop_rules import BASELINES, CostUnit, costs, decisions, total_cost
from haltwise.tasks import TaskFamily, family

NAME, SEEDS, STEPS, NUM = "regression-10d-smooth-sgd", [3, 8, 5], 12, 120


@pytest.fixture(scope="module")
def model() -> OptimizerModel:
    return load(NAME)


def trajectories(
    model: OptimizerModel, sources: list[TaskFamily], seed: int, price: float, num: int
) -> list[Trajectory]:
    """Test and tuning problems of a seed, by hand."""
    return [
        model.halting.attach(
            Trajectory.join(
                [
                    record(model.rule, source.sample(num, stream(seed, part)), STEPS)
                    for source in sources
                ]
            ),
            price,
        )
        for part in ("test", "tune")
    ]


def test_its_figures_are_those_of_every_seed_by_itself(model: OptimizerModel) -> None:
    source = family("regression-10d-smooth")
    found = study(
        {"sgd": model},
        {"smooth": source},
        prices=[0.05, 0.5],
        horizon=STEPS,
        seeds=SEEDS,
        num_problems=NUM,
    )
    assert (found.optimizer, found.family, found.seeds) == ("sgd", "smooth", SEEDS)
    pairs = [(price, unit) for price in (0.05, 0.5) for unit in CostUnit]
    assert [(cell.price, cell.unit) for cell in found.cells] == pairs
    for cell in found.cells:
        price, unit = cell.price, cell.unit
        j: dict[str, list[float]] = {}
        for seed in SEEDS:
            test, tuning = trajectories(model, [source], seed, price, NUM)
            table = costs(test.excess, price).double()
            j.setdefault("fixed", []).append(table.mean(0).min().item())
            j.setdefault("oracle", []).append(table.min(1).values.mean().item())
            for name, (rule, returns) in choose_policies(
                model.halting, tuning, unit, price
            ).items():
                own = total_cost(test, decisions(rule, test), unit, returns, price=price)
                j.setdefault(name, []).append(own.double().mean().item())
        assert set(cell.rules) == set(j)
        for name, values in j.items():
            shown = cell.rules[name]
            assert shown.j == pytest.approx(values, rel=1e-6)
            gains = [
                (fixed - value) / (fixed - oracle)
                for value, fixed, oracle in zip(values, j["fixed"], j["oracle"], strict=True)
            ]
            assert shown.gain == pytest.approx(gains, rel=1e-4, abs=1e-5)
            margins = [a - b for a, b in zip(values, j["calibrated"], strict=True)]
            assert shown.difference.value == pytest.approx(fmean(margins), abs=1e-6)
            # Student's t with 2 degrees of freedom: 4.3027 standard errors
            half = 4.302652729911275 * stdev(margins) / 3**0.5
            assert shown.difference.high - shown.difference.value == pytest.approx(half, abs=1e-6)
        assert cell.judged == "calibrated"
        best = min(BASELINES, key=lambda name: fmean(j[name]))
        assert cell.best_baseline == best
        assert cell.failures == [
            seed
            for place, seed in enumerate(SEEDS)
            if j["calibrated"][place] >= min(j["fixed"][place], j[best][place])
        ]


def test_families_are_pooled(model: OptimizerModel) -> None:
    sources = {name: family(name) for name in ("regression-10d-smooth", "regression-2d")}
    found = study(
        {"sgd": model}, sources, prices=[0.05], horizon=STEPS, seeds=[3, 8], num_problems=121
    )
    assert found.family == "regression-10d-smooth + regression-2d"
    assert found.num_problems == 120  # what is left of 121 is not drawn
    gains, correlations = [], []
    for seed in (3, 8):
        test, tuning = trajectories(model, list(sources.values()), seed, 0.05, 60)
        table = costs(test.excess, 0.05).double()
        fixed, best = table.mean(0).min().item(), table.min(1)
        policy = choose_policies(model.halting, tuning, CostUnit.UPDATES, 0.05)["gradient_norm"]
        stops = decisions(policy.rule, test)
        own = total_cost(test, stops, CostUnit.UPDATES, policy.returns, price=0.05).double()
        gains.append((fixed - own.mean().item()) / (fixed - best.values.mean().item()))
        correlations.append(spearmanr(stops, best.indices).statistic)
    rule = found.cells[0].rules["gradient_norm"]
    assert rule.gain == pytest.approx(gains, rel=1e-5)
    assert rule.rank_correlation == pytest.approx(fmean(correlations))


def test_models_are_compared_on_the_same_trajectories(model: OptimizerModel) -> None:
    source = {"smooth": family("regression-10d-smooth")}
    settings: dict[str, Any] = {"prices": [0.05], "horizon": STEPS, "num_problems": NUM}
    settings["seeds"] = [3, 8]
    alone = study({"trained": model}, source, **settings)
    new = OptimizerModel(model.card, stream(0)).requires_grad_(False)
    found = study({"trained": model, "new": new}, source, **settings)
    for single, cell in zip(alone.cells, found.cells, strict=True):
        assert cell.rules.keys() - single.rules.keys() == {"new"}
        assert cell.rules["calibrated"].gain == single.rules["calibrated"].gain
        assert cell.rules["new"].difference.value > 0
        assert cell.rules[cell.judged].difference.high == 0
    other = OptimizerModel(
        Card(Choice("stick-breaking"), 0.05, STEPS, rule=Choice("sgd", {"learning_rate": 0.05}))
    )
    with pytest.raises(InputError, match="logistic is the name of a stop rule"):
        study({"one": model, "logistic": new}, source, **settings)
    with pytest.raises(InputError, match="trajectories of one update rule"):
        study({"one": model, "other": other}, source, **settings)


def test_bad_input_is_refused(model: OptimizerModel) -> None:
    lstm = load("regression-2d-lstm")
    for models, seeds, price, num, message in (
        ({"x": model}, [1], 0.1, 200, "at least 2 seeds, got 1"),
        ({"x": model}, [1, 2], 0.0, 200, "above 0, got 0"),
        ({"x": model}, [1, 2], 0.1, 31, "at least 32, got 31"),
        ({"x": model}, [1, 2, 1], 0.1, 64, r"seed \[1\] is given twice, and would count twice"),
        ({"x": model}, [1, 2], 1e300, 64, "at most 3.4e"),
        ({"x": lstm}, [1, 2], 0.1, 64, "x was trained without halting"),
    ):
        with pytest.raises(InputError, match=message):
            study(
                models,
                {"f": family("regression-2d")},
                prices=[price],
                horizon=5,
                seeds=seeds,
                num_problems=num,
            )


def test_what_is_named_twice_is_refused(tmp_path: Path) -> None:
    for twice, sentence in (
        (("--price", 0.1), "price [0.1] is given twice"),
        (("--family", "regression-2d"), "two families are called 'regression-2d'"),
    ):
        done = haltwise("study", "regression-2d", *twice, *twice, cwd=tmp_path)
        assert sentence in done.stderr


def test_the_command_shows_both_units_and_writes_every_figure(tmp_path: Path) -> None:
    options = ["--seeds", 2, "--num-problems", 64, "--horizon", 8, "--json", "out.json"]
    prices = ["--price", 0.3, "--price", 0.03, "--halter", "ten=regression-10d"]
    done = haltwise("study", "regression-2d", *options, *prices, cwd=tmp_path)
    assert done.returncode == 2, "another update rule"
    done = haltwise("study", "regression-2d", *options, *prices[:4], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    found = from_json(StudyRecord, document)
    assert to_json(found) == document
    assert found.optimizer == found.family == "regression-2d"
    for cell in found.cells:
        assert f"counted in {cell.unit.value}" in done.stdout
        assert f"{fmean(cell.rules['learned'].gain):.3f}" in done.stdout
        difference = cell.rules[cell.best_baseline].difference
        assert interval(difference) in done.stdout
    for halter in ("mode", "regression-2d=regression-2d-mode"):  # no run; the name is taken
        assert haltwise("study", "regression-2d", "--halter", halter, cwd=tmp_path).returncode == 2
