"""Which weights are kept and which policies calibrated, against brute force."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import by_adam, finish, optimizer, tiny
from torch import Tensor

from haltwise import load
from haltwise._core.random import stream
from haltwise.models import HaltingModel
from haltwise.models.loading import card_of
from haltwise.processes import Trajectory
from haltwise.rollout import record
from haltwise.stop_rules import (
    BASELINES,
    RETURNABLE,
    CostUnit,
    DecisionTime,
    FixedBudget,
    HazardThreshold,
    StopPolicy,
    costs,
    decide_all,
    total_cost,
)
from haltwise.tasks import family
from haltwise.training import Trainer, TrainingSettings
from haltwise.training import trainer as trainer_module
from haltwise.training.run.log import read_log
from haltwise.training.validation import Validated, validate, validation_prices

SIZE = 64
OTHERS: list[Any] = [FixedBudget, *BASELINES.values()]


def settings_of(**changes: object) -> TrainingSettings:
    sizes = {"num_problems": SIZE, "num_calibration": SIZE, "every": 80}
    halting = {"num_steps": 80, "num_recorded": 256, "batch_size": 128}
    return by_adam(
        horizon=20, price=0.5, price_range=16.0, validation=sizes, halting=halting, **changes
    )


def brute_force(
    model: HaltingModel, recorded: Trajectory, price: float, threshold: float, unit: CostUnit
) -> tuple[float, float]:
    """Mean J and mean cost of stopping at the first hazard at a threshold, item by item."""
    known = model.attach(recorded, price)
    hazards = known.outputs["hazard_logits"][..., unit.decision_time].tolist()
    holds, excess = known.outputs["hold_logits"].tolist(), known.excess.tolist()
    total = cost = 0.0
    for i in range(recorded.num_items):
        stops = [t for t, logit in enumerate(hazards[i]) if logit >= threshold]
        stop = stops[0] if stops else recorded.num_steps
        if unit is CostUnit.UPDATES:
            end, paid = stop, stop
        else:  # the gradient at theta_t is paid for, and its update free
            paid = min(stop + 1, recorded.num_steps)
            held = stop < recorded.num_steps and holds[i][stop] > 0
            end = stop if held else min(stop + 1, recorded.num_steps)
        total += excess[i][end] + price * paid
        cost += paid
    return total / recorded.num_items, cost / recorded.num_items


def recordings(settings: TrainingSettings, model: object, name: str) -> Trajectory:
    batch = family(settings.family.name).sample(SIZE, stream(settings.seed, name))
    return record(model.rule, batch, settings.horizon)  # type: ignore[attr-defined]


def test_prices_of_validation_lie_within_those_of_training() -> None:
    """price / range^(3/4), price and price * range^(3/4): 16^(3/4) is 8."""
    assert validation_prices(settings_of()) == pytest.approx([0.0625, 0.5, 4.0])
    assert validation_prices(by_adam(price_range=1.0)) == pytest.approx([0.0527])


def in_prices(model: HaltingModel, recorded: Trajectory, threshold: float, unit: CostUnit) -> float:
    """What calibration minimises: the mean over the three prices of J in prices."""
    return sum(
        brute_force(model, recorded, price, threshold, unit)[0] / price
        for price in (0.0625, 0.5, 4.0)
    )


@pytest.mark.parametrize("unit", CostUnit)
def test_the_policy_that_ships_is_the_best_on_the_calibration_problems(
    unit: CostUnit, tmp_path: Path
) -> None:
    """Of all thresholds, simple rules and iterates; on the validation problems another would be."""
    settings = settings_of()
    finish(Trainer(settings, tmp_path))
    model = load(tmp_path)
    policy = model.policy(unit)

    def scores(name: str) -> dict[StopPolicy, float]:
        """The mean over the three prices of J in prices."""
        recorded = recordings(settings, model, name)
        parts = []
        for price in (0.0625, 0.5, 4.0):
            known = model.halting.attach(recorded, price)
            parts.append(replace(known, excess=known.excess / price))
        merged = Trajectory.join(parts)
        table = costs(merged.excess, 1.0)
        times = {unit.decision_time, DecisionTime.AFTER_GRADIENT}
        rules = [rule for t in times for rule in HazardThreshold.candidates(merged, table, t)]
        rules += [r for kind in OTHERS for r in kind.candidates(merged, table)[::10]]
        return {
            StopPolicy(rule, iterate): float(
                total_cost(merged, decided, unit, iterate, price=1.0).double().mean()
            )
            for rule, decided in decide_all(rules, merged)
            for iterate in RETURNABLE[unit]
        }

    found, there = scores("calibration"), scores("validation")
    chosen = model.card.provenance["calibration"][unit.value]
    least, second, *_ = sorted(chosen["mean_j"].values())
    assert chosen["mean_j"][chosen["chosen"]] == least <= min(found.values()) + 1e-6
    assert chosen["margin"] == second - least
    learned = isinstance(policy.rule, HazardThreshold)
    assert (chosen["chosen"] == "learned") is learned is (unit is CostUnit.UPDATES)
    if learned:
        assert found[policy] == pytest.approx(least)
    assert read_log(tmp_path)[-1][unit.value] == chosen
    assert min(there, key=lambda each: there[each]) != policy


@pytest.mark.parametrize("unit", CostUnit)
def test_weights_are_judged_by_their_stops_at_three_prices(unit: CostUnit, tmp_path: Path) -> None:
    settings = settings_of()
    trainer = finish(Trainer(settings, tmp_path))
    model, learner = trainer.model, trainer._learner
    trainer.source.unit = unit
    found = validate(settings, model, trainer.source, (), judges_halting=True)
    recorded = recordings(settings, model, "validation")
    j, cost = brute_force(learner.halting, recorded, 0.5, 0.0, unit)
    assert found.metrics["price_adjusted_loss"] == pytest.approx(j, rel=1e-5)
    assert found.metrics["mean_halting_step"] == pytest.approx(cost, rel=1e-6)
    assert found.metrics["mean_loss"] == pytest.approx(recorded.excess[:, 1:].mean().item())
    assert found.score == pytest.approx(in_prices(learner.halting, recorded, 0.0, unit), rel=1e-5)


def test_without_halting_weights_are_judged_by_the_mean_loss(tmp_path: Path) -> None:
    settings = tiny("lstm")
    trainer = Trainer(settings, tmp_path)
    batch = trainer.source.sample(SIZE, stream(3, "any"))
    assert batch is not None
    found = validate(settings, trainer.model, trainer.source, [batch], judges_halting=True)
    mean = record(optimizer(trainer).rule, batch, settings.horizon).excess[:, 1:].mean().item()
    assert found.score == pytest.approx(mean / settings.price)
    assert math.isnan(found.metrics["price_adjusted_loss"])


def judged(score: float, num_left_out: int = 0, *, diverged: bool = False) -> Validated:
    metrics = dict.fromkeys(
        ("mean_loss", "final_loss", "price_adjusted_loss", "mean_halting_step"), score
    )
    return Validated(metrics, score, diverged, num_left_out, None)


def best_step(
    judgements: Sequence[Validated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **joint: float
) -> int:
    """The meta-step of the weights kept, when validations 0, 1, ... are judged like this."""
    script = iter(judgements)
    monkeypatch.setattr(trainer_module, "validate", lambda *_, **__: next(script))
    schedule = {"joint": {"num_steps": len(judgements) - 1, "warmup": 0.0, **joint}}
    finish(Trainer(tiny("lstm", schedule, validation={"every": 1}), tmp_path))
    step: int = card_of(tmp_path).provenance["meta_step"]
    return step


def test_weights_that_fail_on_fewer_problems_are_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [judged(9, 3), judged(1, 1), judged(5), judged(6), judged(0.1, 2), judged(5)]
    assert best_step(found, tmp_path, monkeypatch) == 2


def test_of_those_that_fail_alike_the_lowest_score_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [judged(9), judged(5), judged(math.nan), judged(4), judged(7)]
    assert best_step(found, tmp_path, monkeypatch) == 3


def test_what_diverged_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [judged(9), judged(5), judged(1, diverged=True), judged(6), judged(7)]
    assert best_step(found, tmp_path, monkeypatch, num_steps=3) == 1


def test_weights_count_after_the_warmup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [judged(1), judged(2), judged(5), judged(4), judged(6)]
    assert best_step(found, tmp_path, monkeypatch, warmup=0.5) == 3


def losses_that(change: Tensor) -> Trajectory:
    return Trajectory(change, change)


def test_a_rule_diverges_where_most_problems_end_far_above_their_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 100 times what they start from, in the mean over the steps."""
    settings = tiny("lstm")
    trainer = Trainer(settings, tmp_path)
    batch = trainer.source.sample(4, stream(3, "any"))
    assert batch is not None
    for factors, diverged in (
        ([100.0, 100.0, 200.0, 200.0], False),
        ([100.0, 102.0, 200.0, 200.0], True),
        ([1.0, 1.0, math.nan, math.inf], False),
        ([1.0, math.nan, math.nan, math.inf], True),
    ):
        loss = torch.ones(4, 7) * torch.tensor([[f] for f in factors])
        loss[:, 0] = 1.0
        trajectory = losses_that(loss)
        monkeypatch.setattr(
            "haltwise.training.validation.record", lambda *_, found=trajectory: found
        )
        found = validate(settings, trainer.model, trainer.source, [batch], judges_halting=False)
        assert found.diverged == diverged
