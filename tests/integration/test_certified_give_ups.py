"""Certificates of the share of successes that giving runs up loses."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from logged_rows import with_rows_of_training
from scipy.stats import binom
from tiny_rules import Patience

import haltwise
from haltwise import CurveModel, Curves, InputError, RunMonitor
from haltwise._core.errors import CalibrationWarning
from haltwise.certificates import Certificate, Refusal
from haltwise.cli import cli
from haltwise.curves import certify_curves, learn
from haltwise.curves.curves import Booleans, Curve, Floats, Integers
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.peers import PeersRule
from haltwise.curves.shipped import pretrained


class Shown(CurveRule):
    """A score that is a column of the curve."""

    def score(self, curve: Curve) -> Floats:
        return curve.columns["score"]


def pool(num: int, seed: int, groups: int = 20) -> Curves:
    """Runs of two points whose score at the first tells little of the success at the second."""
    rng = np.random.default_rng(seed)
    good = rng.random(num) < 0.5
    score = np.clip(rng.normal(0.5 + 0.3 * good, 0.2), 0.001, None)
    runs = [
        {"loss": [2.0, 0.5 if ok else 1.5], "score": [value, 9.0]}
        for ok, value in zip(good, score, strict=True)
    ]
    return Curves.from_runs(
        runs, metric="loss", target=1.0, group=[str(i % groups) for i in range(num)]
    )


def test_the_level_loses_no_more_than_certified_in_nine_of_ten_draws() -> None:
    whole = pool(4_000, 0)
    first = np.array([curve.columns["score"][0] for curve in whole])
    of_successes = first[whole.success >= 0]
    rng = np.random.default_rng(1)
    violated = certified = 0
    for _ in range(60):
        drawn = whole.select(rng.choice(whole.num_runs, 400, replace=False))
        found = haltwise.certify(Shown(), drawn, risk="given-up", level=0.05, confidence=0.9)
        if isinstance(found, Certificate):
            assert found.score_level is not None
            violated += (of_successes < found.score_level).mean() > 0.05
            certified += 1
    assert certified > 40
    assert violated <= 12  # binomial: at most 12 of 60 at .1 with probability .994


def test_too_few_groups_are_refused_with_the_number_needed() -> None:
    few = pool(500, 0, groups=13)
    found = haltwise.certify(
        Shown(), few, risk="given-up", level=0.02, confidence=None, group=few.group.tolist()
    )
    assert isinstance(found, Refusal)
    assert found.statement == "not certifiable: 13 groups, 49 needed"


def of_scores(good: Booleans, score: Floats, group: Booleans | Integers) -> Curves:
    """Runs whose only score before their end is given, with the successes that are."""
    runs = [
        {"loss": [2.0, 0.5 if ok else 1.5], "score": [value, np.inf]}
        for ok, value in zip(good, score, strict=True)
    ]
    return Curves.from_runs(runs, metric="loss", target=1.0, group=[*map(str, group)])


@pytest.mark.parametrize("num", [59, 60, 150, 700])
def test_as_many_successes_are_lost_as_a_binomial_bound_allows(num: int) -> None:
    rng = np.random.default_rng(num)
    good = np.append(np.full(num, True), np.full(5 * num, False))
    score = np.append(rng.normal(2.0, 1.0, num), rng.normal(0.0, 1.0, 5 * num))
    score[good.argmax()] = score[~good].min() - 1e-3  # one below all: hardly a level has no loss
    found = certify_curves(
        Shown(), of_scores(good, score, good), level=0.05, confidence=0.9, grouped=False
    )
    most = int(binom.ppf(0.1, num, 0.05))  # the next number, with which the bound is above .1
    most -= bool(binom.cdf(most, num, 0.05) > 0.1)
    if most < 1:
        assert isinstance(found, Refusal)
        return
    found = found.require()
    level = found.score_level
    assert level is not None
    assert "fixed before" not in found.assumption  # they lie between the scores of these runs
    assert (score[good] < level).sum() == most
    left = np.sort(score[good])[most]  # by the next level one more is lost
    assert not ((score >= level) & (score < left)).any()


def test_runs_given_up_at_their_last_point_hide_no_level_that_saves() -> None:
    rng = np.random.default_rng(0)
    late = [{"loss": [2.0, 1.5], "score": [9.0, value]} for value in np.linspace(-10, -1, 2740)]
    early = [{"loss": [2.0, 1.5], "score": [value, 9.0]} for value in np.linspace(-0.9, -0.5, 8)]
    good = [{"loss": [2.0, 0.5], "score": [value, 9.0]} for value in rng.uniform(-0.4, 5, 200)]
    curves = Curves.from_runs([*late, *early, *good], metric="loss", target=1.0)
    found = certify_curves(Shown(), curves, level=0.02, confidence=0.9, grouped=False).require()
    assert found.score_level is not None
    assert found.score_level > -0.5
    assert found.savings >= 8 / len(curves)


def test_groups_too_small_for_a_level_are_warned_of_once() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(400) // 20
    good = np.arange(400) % 20 < 3
    curves = of_scores(good, rng.normal(3.0 * good, 1.0), group)
    with pytest.warns(CalibrationWarning, match="no group has more than 3 problems") as told:
        certify_curves(Shown(), curves, level=0.1, confidence=0.9).require()
    assert len(told) == 1


def test_rows_of_training_alone_change_no_certificate_of_a_rule_of_ones_own() -> None:
    """The monitor that uses it is updated with the metric alone."""
    rng = np.random.default_rng(0)
    losses = np.minimum.accumulate(rng.uniform(0.0, 3.0, (200, 12)), 1)
    settings: dict[str, Any] = {"target": 0.1, "budget": 12.0}
    whole, alone = with_rows_of_training(losses, ["all"] * 200, **settings)
    found, expected = (
        certify_curves(Patience(), runs, level=0.3, confidence=0.9, grouped=False).require()
        for runs in (whole, alone)
    )
    assert found == expected
    assert found.savings > 0


@pytest.mark.parametrize("confidence", [0.9, None])
@pytest.mark.parametrize("seed", range(4))
def test_the_level_is_the_highest_that_the_groups_allow(
    seed: int, confidence: float | None
) -> None:
    rng = np.random.default_rng(seed)
    group = rng.choice(25, 600, p=rng.dirichlet(np.ones(25)))
    good = rng.random(600) < 0.5
    score = rng.normal(2.0 * good, 1.0) + rng.standard_cauchy(25)[group]
    found = certify_curves(
        Shown(), of_scores(good, score, group), level=0.2, confidence=confidence
    ).require()
    num, best = len(np.unique(group[good])), -np.inf
    for level in np.nextafter(np.sort(score), np.inf):
        lost = np.array(
            [(score[good & (group == one)] < level).mean() for one in np.unique(group[good])]
        )
        if confidence is None:
            holds = lost.sum() + 1 <= 0.2 * (num + 1)
        else:
            holds = (lost > 0.2).sum() <= (num + 1) // 10 - 1
        best = level if holds else best
    assert found.score_level is not None
    assert found.score_level <= best
    assert not ((score >= found.score_level) & (score < best)).any()
    assert found.num_set_aside == 0


@pytest.mark.parametrize(
    ("rule", "runs", "risk", "message"),
    [
        (Shown(), pool(50, 0).with_targets(-9.0), "given-up", "no run meets its target"),
        (Shown(), pool(50, 0), "excess", "given-up"),
        (object(), pool(50, 0), "given-up", "recorded runs"),
    ],
)
def test_what_cannot_be_certified_is_refused(
    rule: CurveRule, runs: Curves, risk: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        haltwise.certify(rule, runs, risk=risk, level=0.05, confidence=0.9)  # type: ignore[arg-type]


def test_a_certificate_lies_on_the_card_and_holds_for_these_trees_alone(tmp_path: Path) -> None:
    def runs(seed: int) -> Curves:
        rng = np.random.default_rng(seed)
        ends = rng.uniform(0.5, 1.6, (300, 1))
        losses = ends + (3 - ends) * 0.8 ** np.arange(20)
        return Curves.from_matrix(losses, target=1.0, group=[str(i % 12) for i in range(300)])

    def some(seed: int) -> Curves:
        few = runs(seed).select(np.arange(60))
        return few.with_groups([str(i % 2) for i in range(60)])

    model = learn(some(0)).model
    path = tmp_path / "model.safetensors"
    model.save(path)
    runs(1).save(tmp_path / "new.npz")
    given = ["judge", str(path), str(tmp_path / "new.npz"), "--adopt"]
    done = CliRunner().invoke(cli, [*given, "--certify", "0.1", "--confidence", "0.9"])
    assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(cli, [*given, "--certify", "1e-6", "--confidence", "0.9"])
    assert refused.exit_code != 0
    (found,) = CurveModel.load(path).card.certificates
    assert found.model == model.digest
    monitor = RunMonitor(path, target=1.0, budget=19.0, level=found)
    for loss in 2.9 - 0.01 * np.arange(15):
        monitor.update(loss)
    assert monitor.should_stop
    other = pretrained()
    with pytest.raises(InputError, match="of another rule"):
        RunMonitor(other, target=1.0, level=found)
    CurveModel(other.forecast, replace(other.card, certificates=(found,))).save(path)
    with pytest.raises(InputError, match="certificate of other trees"):
        CurveModel.load(path)


def test_a_certificate_of_a_rule_made_by_hand_holds_for_it_alone() -> None:
    runs = pool(800, 0)
    peers = PeersRule(0.1).fit(runs.select(np.arange(400)))
    others = PeersRule(0.1).fit(runs.select(np.arange(300)))
    found = haltwise.certify(
        peers, runs.select(np.arange(400, 800)), risk="given-up", level=0.4, confidence=0.8
    )
    assert isinstance(found, Certificate)
    RunMonitor(peers, target=1.0, budget=2.0, level=found)
    for other in (others, PeersRule(0.2, peers.peers), Shown()):
        with pytest.raises(InputError, match="of another rule"):
            RunMonitor(other, target=1.0, budget=2.0, level=found)


def test_a_certificate_speaks_for_runs_whose_cost_is_counted_alike() -> None:
    """The score of a forecast is a chance per unit of cost: in minutes all runs were given up."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(0.5, 1.6, (360, 1))
    losses = ends + (3 - ends) * 0.8 ** np.arange(20)
    groups = [str(i % 12) for i in range(360)]
    runs = Curves.from_matrix(losses, 0.5 * np.arange(20), target=1.0, cost_unit="hours")
    model = learn(runs.select(np.arange(60)).with_groups(groups[:60])).model
    rest = runs.select(np.arange(60, 360))
    found = haltwise.certify(model, rest, risk="given-up", level=0.1, confidence=0.9).require()
    assert (found.cost_unit, found.budgets) == ("hours", (9.5, 9.5))
    found = Certificate.from_json(json.loads(json.dumps(found.to_json())))
    with pytest.raises(InputError, match="cost is counted in hours, not in minutes"):
        RunMonitor(model, target=1.0, budget=570.0, cost_unit="minutes", level=found)
    good = losses[int(ends.argmin())]
    monitors = [RunMonitor(model, target=1.0, budget=unit * 9.5, level=found) for unit in (1, 60)]
    with warnings.catch_warnings(record=True, action="always") as told:
        for step, loss in enumerate(good[:6]):
            for monitor, unit in zip(monitors, (0.5, 30.0), strict=True):
                monitor.update(loss, cost=unit * step)
    assert [warning.category for warning in told] == [CalibrationWarning]
    assert "a budget of 570, and those that were certified had 9.5 to 9.5" in str(told[0].message)
    assert [monitor.should_stop for monitor in monitors] == [False, True]


def test_certificates_from_before_costs_had_units_are_read() -> None:
    found = haltwise.certify(Shown(), pool(800, 0), risk="given-up", level=0.4, confidence=0.8)
    document = found.require().to_json()
    del document["cost_unit"], document["budgets"]
    old = Certificate.from_json(document)
    RunMonitor(Shown(), target=1.0, budget=700.0, level=old)
    with pytest.raises(InputError, match="a certificate has the entries"):
        Certificate.from_json({**document, "other": 1})
