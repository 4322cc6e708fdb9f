"""Evaluation figures against brute force."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from haltwise.stop_rules.accounts import RETURNABLE, ReturnedIterate, steps_charged, total_cost
from torch import Tensor

from haltwise import InputError
from haltwise._core.random import stream
from haltwise.evaluation import (
    Contender,
    CostUnit,
    baselines,
    captured_gain,
    costs,
    evaluate,
    returned_steps,
)
from haltwise.evaluation.baselines import (
    HAND_DESIGNED,
    LEARNING_RATES,
    lbfgs_curve,
    loss_curves,
    tune_rule,
)
from haltwise.evaluation.records import load_records, save_record
from haltwise.evaluation.statistics import lower_hull, permuted_cost, randomized_budget
from haltwise.models.optimizer_model import ModelConfig, OptimizerModel
from haltwise.stop_rules import Traces
from haltwise.tasks import family
from haltwise.tasks.module import ModuleBatch


@pytest.fixture
def table() -> Tensor:
    return torch.rand(50, 9, generator=stream(0), dtype=torch.float64)


def test_oracle_captures_everything_and_the_best_fixed_budget_nothing(table: Tensor) -> None:
    oracle = captured_gain(table, table.min(1).values, stream(1))
    assert oracle.value == oracle.low == oracle.high == pytest.approx(1)
    gain = captured_gain(table, table[:, int(table.mean(0).argmin())], stream(1))
    assert gain.value == pytest.approx(0)
    assert gain.low < 0  # in a resample another budget may be the best
    assert gain.high == pytest.approx(0)


def test_captured_gain_interval_covers_what_it_should() -> None:
    """The 95 % interval holds the gain of the population about 95 times in 100."""
    population = torch.rand(20_000, 5, generator=stream(3), dtype=torch.float64)
    population += torch.tensor([0.2, 0.1, 0.0, 0.1, 0.2])  # one fixed budget is clearly the best
    end = (population[:, 0] > 0.5).long() * 2

    def gain(sample: Tensor, stop: Tensor) -> float:
        rule = sample.gather(1, stop.unsqueeze(1)).mean()
        fixed, oracle = sample.mean(0).min(), sample.min(1).values.mean()
        return float((fixed - rule) / (fixed - oracle))

    truth, covered = gain(population, end), 0
    for trial in range(40):
        chosen = torch.randint(20_000, (200,), generator=stream(4, trial))
        cost = population[chosen].gather(1, end[chosen].unsqueeze(1)).squeeze(1)
        interval = captured_gain(population[chosen], cost, stream(5, trial))
        assert interval.value == pytest.approx(gain(population[chosen], end[chosen]))
        covered += interval.low <= truth <= interval.high
    assert covered >= 34


def test_permuted_cost_is_the_mean_over_all_deals(table: Tensor) -> None:
    end = torch.randint(9, (50,), generator=stream(2))
    brute = sum(table[i, end[j]] for i in range(50) for j in range(50)) / 2500
    assert permuted_cost(table, end) == pytest.approx(float(brute))


def test_lower_hull_is_below_every_budget_and_convex() -> None:
    mean_loss = torch.tensor([5.0, 4.5, 1.0, 2.0, 0.9, 0.2])
    assert lower_hull(mean_loss) == [0, 2, 5]
    assert randomized_budget(mean_loss, 1.0) == pytest.approx(3.0)
    for budget, value in enumerate(mean_loss.tolist()):
        assert randomized_budget(mean_loss, budget) <= value + 1e-6


def test_the_last_update_is_free_only_where_gradients_are_counted() -> None:
    decided = torch.tensor([0, 3, 7])
    traces = Traces(torch.zeros(3, 8), torch.zeros(3, 8))
    assert returned_steps(decided, traces, ReturnedIterate.CURRENT).tolist() == [0, 3, 7]
    assert returned_steps(decided, traces, ReturnedIterate.NEXT).tolist() == [1, 4, 7]
    assert steps_charged(decided, CostUnit.UPDATES, 7).tolist() == [0, 3, 7]
    assert steps_charged(decided, CostUnit.GRADIENTS, 7).tolist() == [1, 4, 7]
    assert costs(torch.zeros(1, 3), 0.5).tolist() == [[0.0, 0.5, 1.0]]


@pytest.mark.parametrize("account", CostUnit)
@pytest.mark.parametrize("recall", ReturnedIterate)
def test_settling_is_excess_where_it_ends_plus_price_times_what_was_paid(
    account: CostUnit, recall: ReturnedIterate, table: Tensor
) -> None:
    decided = torch.arange(50) % 9
    loss = torch.randn(50, 9, generator=stream(8)).round()  # with ties
    loss[3:9, :4] = torch.nan
    hold = torch.randn(50, 8, generator=stream(9))
    traces = Traces(loss, table, hold_logits=hold)
    if recall not in RETURNABLE[account]:
        with pytest.raises(InputError, match="cannot return"):
            total_cost(traces, decided, account, recall, price=0.3)
        return
    found = total_cost(traces, decided, account, recall, price=0.3)
    for problem, step in enumerate(decided.tolist()):
        cost = min(step + 1, 8) if account is CostUnit.GRADIENTS else step
        end = step
        if recall is ReturnedIterate.NEXT or (
            recall is ReturnedIterate.LEARNED and (step == 8 or hold[problem, step] <= 0)
        ):
            end = min(step + 1, 8)
        elif recall is ReturnedIterate.BEST:
            seen = [math.inf if math.isnan(x) else x for x in loss[problem].tolist()]
            end = min(range(min(step, 7) + 1), key=seen.__getitem__)
        assert found[problem] == pytest.approx(float(table[problem, end]) + 0.3 * cost)


def test_learning_rates_are_a_fine_wide_grid() -> None:
    assert len(LEARNING_RATES) >= 8
    assert all(b / a <= 2 for a, b in itertools.pairwise(LEARNING_RATES))


@pytest.mark.parametrize("num_problems", [10, 30])
@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_a_tuned_rule_is_the_best_of_the_grid(
    monkeypatch: pytest.MonkeyPatch, name: str, num_problems: int
) -> None:
    monkeypatch.setattr(baselines, "_TUNING_COORDINATES", 100)  # ten problems are enough
    batch = family("quadratic-10d").sample(num_problems, stream(0))
    tuned = tune_rule(HAND_DESIGNED[name], batch, 10)
    some = batch.select(torch.arange(10))
    best = min(
        (mean, rate)
        for rate in LEARNING_RATES
        if not math.isnan(
            mean := float(
                loss_curves(HAND_DESIGNED[name](rate), some, 10).excess[:, 1:].double().mean()
            )
        )
    )
    assert tuned.learning_rate == best[1]
    assert not tuned.at_edge


def test_lbfgs_solves_a_quadratic_within_the_budget_it_is_charged_for() -> None:
    batch = family("regression-10d-plain").sample(3, stream(0), dtype=torch.float64)
    curve = lbfgs_curve(batch, 60)
    assert curve.shape == (3, 61)
    assert torch.equal(curve[:, 0], curve[:, 1])  # the first evaluation is at theta_0
    assert (curve.diff(dim=1) <= 0).all()
    assert (curve[:, -1] < 1e-9 * curve[:, 0]).all()


def untrained(posterior: str = "both") -> Contender:
    optimizer = OptimizerModel(ModelConfig(), stream(0)).requires_grad_(False)
    optimizer.card = {"config": {"posterior": posterior}, "thresholds": [0.0, -2.5]}
    return Contender(posterior, optimizer)


def test_an_evaluation_holds_what_it_promises_and_survives_the_disk(tmp_path: Path) -> None:
    record = evaluate(
        untrained(),
        family("regression-2d"),
        family_name="regression-2d",
        price=0.05,
        horizon=8,
        seed=5,
        num_problems=100,
        baseline=untrained("lstm"),
        others=(untrained("softmax"),),
    )
    summary = json.loads(json.dumps(record.summary, allow_nan=False))
    rules = {"rule", "oracle", "fixed", "gradient_norm", "plateau", "patience", "logistic"}
    for account in ("updates", "gradients"):
        assert rules <= set(summary["j"][account])
        assert set(summary["captured_gain"][account]) == {"value", "low", "high"}
        for name, value in summary["j"][account].items():
            assert value >= summary["j"][account]["oracle"] - 1e-9, name
        end = record.arrays[f"end.{account}.rule"]
        j = costs(record.arrays["excess"], 0.05).gather(1, end.unsqueeze(1)).double().mean()
        assert summary["j"][account]["rule"] == pytest.approx(float(j))
        report = summary["stopping_report"][account]
        for name in ("rule", "oracle", "fixed"):
            assert report["j"][name]["value"] == pytest.approx(summary["j"][account][name])
        gain = summary["captured_gain"][account]["value"]
        assert report["captured_gain"]["value"] == pytest.approx(gain, abs=1e-6)
        assert report["reliability"]["num_cases"] > 0
    assert {"family", "price", "seed", "num_problems"} <= set(summary)
    for curve in summary["curves"].values():
        assert len(curve["mean"]) == 9
    executed = summary["executed"]["gradient_evaluations"]
    assert executed == int(record.arrays["end.gradients.rule"].sum())
    save_record(record, tmp_path)
    loaded = load_records(tmp_path)[0]
    assert loaded.summary == summary
    assert torch.equal(loaded.arrays["excess"], record.arrays["excess"])


@pytest.mark.parametrize(("name", "value"), [("price", 0.0), ("horizon", 0), ("num_problems", 31)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    settings = {"price": 0.1, "horizon": 5, "num_problems": 100, name: value}
    with pytest.raises(InputError, match=name):
        evaluate(
            untrained(),
            family("regression-2d"),
            family_name="x",
            seed=0,
            **settings,  # type: ignore[arg-type]
        )


def test_a_directory_without_records_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="haltwise evaluate"):
        load_records(tmp_path)


def test_the_report_judges_what_a_holding_head_returns() -> None:
    contender = untrained()
    contender.optimizer.head.biases[-1][4] = 6.0  # log-odds of holding
    record = evaluate(
        contender,
        family("regression-2d"),
        family_name="regression-2d",
        price=0.05,
        horizon=8,
        seed=5,
        num_problems=100,
    )
    decided = record.arrays["end.gradients.rule"] - 1
    excess = record.arrays["excess"].gather(1, decided.unsqueeze(1)).squeeze(1)
    j = (excess + 0.05 * (decided + 1))[decided < 7].double()
    assert record.arrays["j.gradients.rule"][decided < 7].double().mean() == pytest.approx(j.mean())
    report = record.summary["stopping_report"]["gradients"]
    assert report["j"]["rule"]["value"] == pytest.approx(record.summary["j"]["gradients"]["rule"])


def test_networks_are_judged_on_minibatches_and_test_examples() -> None:
    """The means stand beside what a loop over the problems by hand gives."""
    optimizer = OptimizerModel(
        ModelConfig(rule_settings={"initial_descent": True, "output_scale": 0.03}), stream(0)
    ).requires_grad_(False)
    optimizer.card = {"config": {"posterior": "both"}, "thresholds": [0.0, 0.0]}
    digits = family("digits-mlp")
    summary = evaluate(
        Contender("mine", optimizer),
        digits,
        family_name="digits-mlp",
        price=0.01,
        horizon=3,
        seed=5,
        num_problems=32,
    ).summary
    assert "lbfgs" not in summary  # its line search cannot work on minibatches
    batch = digits.sample(32, stream(5, "test"))
    assert isinstance(batch, ModuleBatch)
    params, state, seen = batch.start, optimizer.rule.init(batch.start), []
    with torch.no_grad():
        for step in range(4):
            loss, grad = batch.observe(params, step)
            seen.append(float(loss.double().mean()))
            if step < 3:
                update, _, state = optimizer.rule.update(grad, state)
                params = params + update
    assert summary["curves"]["mine"]["observed"] == pytest.approx(seen, rel=1e-5)
    assert batch.task.test is not None
    inputs, targets = batch.task.test.take(torch.arange(360), torch.float32)
    right = []
    for problem in params:
        outputs, _ = batch.task.call(problem, {}, inputs)
        right.append(float((outputs.argmax(1) == targets).double().mean()))
    found = summary["held_out"]["mine"]
    assert found["accuracy"] == pytest.approx(sum(right) / 32, rel=1e-5)
    assert set(summary["held_out"]) == {"mine", *HAND_DESIGNED}
    assert summary["executed"]["held_out"]["loss"] > 0
