"""The replay gives runs up where a rule in use would, and counts what that saves and loses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from haltwise import InputError
from haltwise.cli import cli
from haltwise.curves import Curves
from haltwise.curves.shipped import pretrained
from haltwise.halting.session import HaltingSession
from haltwise.interfaces.levelled_rule import LevelledRule
from haltwise.models.loading import load_halting
from haltwise.recordings.runs import RecordedRuns
from haltwise.report import write_replay
from haltwise.report.explorer import explore_runs
from haltwise.report.replay import replay
from haltwise.stop_rules import CostUnit

MIN_POINTS = 3


@pytest.fixture(scope="module")
def curves() -> Curves:
    """Decaying losses, some of which reach 1; the last is longer than what is drawn."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(0.2, 2.0, 10)
    runs = [end + (3 - end) * 0.9 ** np.arange(60) + rng.normal(0, 0.05, 60) for end in ends]
    costs = [np.arange(60.0) for _ in runs]
    runs.append(2 + 0.9 ** (np.arange(900) / 15) + rng.normal(0, 0.05, 900))
    costs.append(np.arange(900) / 15)
    given = [{"cost": cost, "loss": loss} for cost, loss in zip(costs, runs, strict=True)]
    return Curves.from_runs(given, metric="loss", target=1.0, budget=60.0)


def test_runs_are_given_up_where_the_rule_gives_them_up(curves: Curves) -> None:
    shown = replay(pretrained(), curves, num_runs=curves.num_runs, min_points=MIN_POINTS)
    assert len(shown["items"]) == curves.num_runs
    for place in (0, 20, 35, 50, len(shown["prices"]) - 1):
        rule = LevelledRule(pretrained(), price=shown["prices"][place], min_points=MIN_POINTS)
        saved = spent = lost = 0.0
        for curve, item in zip(curves, shown["items"], strict=True):
            stop, found = rule.gives_up(curve), item["stops"][place]
            assert (stop is None) == (found is None)
            succeeded = curve.success >= 0
            assert item["spent"] == curve.cost[curve.success]  # -1 where it never succeeds
            spent += item["spent"]
            if stop is not None:
                assert item["cost"][found] == pytest.approx(curve.cost[stop], rel=1e-5)
                assert item["metric"][found] == pytest.approx(curve.loss[stop], rel=1e-5)
                saved += item["spent"] - curve.cost[stop]
                lost += succeeded
        assert shown["totals"]["saved"][place] == pytest.approx(saved / spent)
        assert shown["totals"]["lost"][place] == lost / (curves.success >= 0).sum()
    nothing, everything = shown["totals"]["runs"][0], shown["totals"]["runs"][-1]
    assert nothing == 0
    assert everything >= curves.num_runs - 1


def test_levels_of_the_card_are_prices_of_the_slider(curves: Curves) -> None:
    shown, model = replay(pretrained(), curves, num_runs=1, min_points=MIN_POINTS), pretrained()
    scale = None if curves.cost_unit == model.card.cost_unit else 60.0
    expected = [model.level(lost=lost, scale=scale) for lost in (0.01, 0.02, 0.05)]
    places = [level["place"] for level in shown["levels"]]
    assert [shown["prices"][place] for place in places] == pytest.approx(expected)


def test_long_runs_are_drawn_with_few_points(curves: Curves) -> None:
    item = replay(pretrained(), curves, num_runs=50, min_points=MIN_POINTS)["items"][-1]
    assert len(item["cost"]) == len(item["chance"]) == len(item["score"]) < 450
    assert item["cost"] == sorted(item["cost"])
    chance = pretrained().chance(curves[curves.num_runs - 1])
    assert item["chance"][-1] == pytest.approx(chance[-1], rel=1e-5)


@pytest.mark.parametrize("number", [0, 51])
def test_how_many_runs_are_shown_is_checked(curves: Curves, number: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"must lie in 1..50, got {number}"):
        write_replay(pretrained(), curves, tmp_path / "x.html", name="a", runs_name="b",
                     num_runs=number)  # fmt: skip


def test_monitored_runs_stop_where_a_session_stops(stopper: Path, recorded_runs: Path) -> None:
    model = load_halting(stopper)
    runs = RecordedRuns.load(recorded_runs, model.card.horizon)
    shown = explore_runs(model, runs.trajectory, num_runs=3)
    chosen = runs.trajectory.select(torch.tensor([0, 74, 149]))
    assert [item["name"] for item in shown["items"]] == ["run 1", "run 75", "run 150"]
    for place, price in enumerate(shown["prices"]):
        stops = [chosen.num_steps] * 3
        session = HaltingSession(model.policy(CostUnit.UPDATES), torch.full((3,), price), model)
        for step, observation in enumerate(chosen):
            for run in session.observe(observation).stop.nonzero().flatten().tolist():
                stops[run] = min(stops[run], step)
        assert [item["at"][place]["stop"] for item in shown["items"]] == stops


def test_long_recordings_have_fewer_prices(stopper: Path, recorded_runs: Path) -> None:
    model = load_halting(stopper)
    runs = RecordedRuns.load(recorded_runs, model.card.horizon)
    many, few = (explore_runs(model, runs.trajectory, num_runs=number) for number in (20, 2))
    assert len(few["prices"]) >= len(many["prices"]) >= 5
    assert len(json.dumps(many)) < 1_500_000


def test_the_command_replays_both(
    stopper: Path, recorded_runs: Path, curves: Curves, tmp_path: Path
) -> None:
    page = tmp_path / "monitor.html"
    arguments = ["replay", str(recorded_runs), "--model", str(stopper), "--out", str(page)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "per round" in page.read_text(encoding="utf-8")

    log = tmp_path / "runs.csv"
    rows = [
        f"{curves.name[run]},{cost},{loss}"
        for run, curve in enumerate(curves)
        for cost, loss in zip(curve.cost, curve.loss, strict=True)
    ]
    log.write_text("run,hours,loss\n" + "\n".join(rows))
    page = tmp_path / "runs.html"
    arguments = ["replay", str(log), "--metric", "loss", "--cost", "hours", "--target", "1"]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "training-runs on runs.csv" in re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))


def test_what_does_not_fit_is_refused(stopper: Path, recorded_runs: Path) -> None:
    for arguments, sentence in (
        (["--model", str(stopper), "--metric", "loss"], "--metric say how curves are read"),
        (["--model", "regression-2d"], "see it by haltwise explore regression-2d"),
    ):
        done = CliRunner().invoke(cli, ["replay", str(recorded_runs), *arguments])
        assert sentence in str(done.exception)
