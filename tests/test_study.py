"""Studies over seeds: what they hold, and that their figures are those of single evaluations."""

from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from haltwise.evaluation.policies import OPPONENTS, choose_policies
from haltwise.stop_rules.accounts import total_cost
from scipy.stats import spearmanr

from haltwise import InputError, load
from haltwise._core.random import stream
from haltwise.evaluation import CostUnit, costs, study_heads, study_stopping
from haltwise.evaluation.study import AFTER_GRADIENT
from haltwise.models.optimizer_model import ModelConfig, OptimizerModel
from haltwise.rollout.record import unroll
from haltwise.stop_rules import Traces, decisions
from haltwise.tasks import family
from haltwise.training import Trainer, TrainingConfig


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> OptimizerModel:
    """A head trained for a moment on gradient descent."""
    directory: Path = tmp_path_factory.mktemp("study") / "run"
    config = TrainingConfig.from_preset(
        "act",
        "regression-10d-smooth",
        rule="sgd",
        rule_settings={"learning_rate": 0.06},
        horizon=12,
        head_steps=30,
        num_recorded=256,
        num_validation=32,
        num_calibration=128,
        head_batch_size=32,
    )
    for _ in Trainer(config, directory).run():
        pass
    return load(directory)


def test_its_figures_are_those_of_every_seed_by_itself(optimizer: OptimizerModel) -> None:
    source, seeds = family("regression-10d-smooth"), [3, 8, 5]
    results = study_stopping(
        optimizer, [source], prices=[0.05, 0.5], horizon=12, seeds=seeds, num_problems=120
    )
    assert [(result["price"], result["account"]) for result in results] == [
        (price, account.value) for price in (0.05, 0.5) for account in CostUnit
    ]
    for result in results:
        price, account = result["price"], CostUnit(result["account"])
        gains: dict[str, list[float]] = {}
        margins, worse = [], []
        for seed in seeds:
            test, tuning = (
                unroll(
                    optimizer, source.sample(120, stream(seed, name)), 12, torch.full((120,), price)
                ).traces()
                for name in ("test", "tune")
            )
            table = costs(test.excess, price).double()
            fixed, oracle = table.mean(0).min().item(), table.min(1).values.mean().item()
            j = {
                name: total_cost(test, decisions(rule, test), account, recall, price=price)
                .double()
                .mean()
                .item()
                for name, (rule, recall) in choose_policies(
                    optimizer, tuning, account, price
                ).items()
            }
            for name, value in j.items():
                gains.setdefault(name, []).append((fixed - value) / (fixed - oracle))
            margins.append(j[result["best_opponent"]] - j["rule_calibrated"])
            if j["rule_calibrated"] >= min(fixed, j[result["best_opponent"]]):
                worse.append(seed)
        for name, values in gains.items():
            found = result["captured_gain"][name]
            assert found["by_seed"] == pytest.approx(values, rel=1e-9)
            assert found["mean"] == pytest.approx(fmean(values), rel=1e-9)
            assert found["sd"] == pytest.approx(stdev(values), rel=1e-6)
        means = {name: result["j"][name] for name in OPPONENTS}
        assert result["best_opponent"] == min(means, key=lambda name: means[name])
        assert result["margin"]["value"] == pytest.approx(fmean(margins), rel=1e-9)
        # Student's t with 2 degrees of freedom: 4.3027 standard errors
        half = 4.302652729911275 * stdev(margins) / 3**0.5
        assert result["margin"]["high"] - fmean(margins) == pytest.approx(half, rel=1e-9)
        assert result["failures"] == worse


def test_bad_input_is_refused(optimizer: OptimizerModel) -> None:
    source = family("regression-10d-smooth")
    for seeds, price, num, message in (
        ([1], 0.1, 200, "at least 2 seeds, got 1"),
        ([1, 2], 0.0, 200, "above 0, got 0"),
        ([1, 2], 0.1, 31, "at least 32, got 31"),
    ):
        with pytest.raises(InputError, match=message):
            study_stopping(
                optimizer, [source], prices=[price], horizon=5, seeds=seeds, num_problems=num
            )


def test_heads_are_compared_on_the_same_trajectories(optimizer: OptimizerModel) -> None:
    source, seeds = family("regression-10d-smooth"), [3, 8]
    settings: dict[str, Any] = {"prices": [0.05], "horizon": 12, "num_problems": 120}
    settings["seeds"] = seeds
    alone = study_stopping(optimizer, [source], **settings)
    new = OptimizerModel(optimizer.config)  # says what the priors say
    new.card = optimizer.card
    results = study_heads({"trained": optimizer, "new": new}, [source], **settings)
    for single, result in zip(alone, results, strict=True):
        gains = single["captured_gain"]
        trained, untrained = result["heads"]["trained"], result["heads"]["new"]
        assert trained["captured_gain"] == gains[single["learned"]]
        assert trained["difference"] == {"value": 0, "low": 0, "high": 0}
        assert untrained["captured_gain"]["mean"] < trained["captured_gain"]["mean"]
        assert untrained["difference"]["value"] > 0
        if result["account"] == "gradients":
            after = result["heads"][AFTER_GRADIENT]
            assert after["captured_gain"] == gains["rule_after_gradient"]
    other = OptimizerModel(ModelConfig("sgd", {"learning_rate": 0.05}))
    with pytest.raises(InputError, match="trajectories of one rule"):
        study_heads({"one": optimizer, "other": other}, [source], **settings)


def test_families_are_pooled(optimizer: OptimizerModel) -> None:
    sources = [family("regression-10d-smooth"), family("regression-2d")]
    (result, _) = study_stopping(
        optimizer, sources, prices=[0.05], horizon=12, seeds=[3, 8], num_problems=121
    )
    gains, correlations = [], []
    for seed in (3, 8):
        test, tuning = (
            [
                unroll(
                    optimizer, source.sample(60, stream(seed, name)), 12, torch.full((60,), 0.05)
                )
                for source in sources
            ]
            for name in ("test", "tune")
        )
        traces, tune_on = (
            Traces(
                *(torch.cat([getattr(t.traces(), f.name) for t in part]) for f in fields(Traces))
            )
            for part in (test, tuning)
        )
        table = costs(traces.excess, 0.05).double()
        fixed, best = table.mean(0).min().item(), table.min(1)
        policies = choose_policies(optimizer, tune_on, CostUnit.UPDATES, 0.05)
        rule, recall = policies["gradient_norm"]
        stops = decisions(rule, traces)
        j = total_cost(traces, stops, CostUnit.UPDATES, recall, price=0.05).double().mean().item()
        gains.append((fixed - j) / (fixed - best.values.mean().item()))
        correlations.append(spearmanr(stops, best.indices).statistic)
    assert result["captured_gain"]["gradient_norm"]["by_seed"] == pytest.approx(gains)
    found = result["rank_correlation"]["gradient_norm"]
    assert found == pytest.approx(fmean(correlations))
