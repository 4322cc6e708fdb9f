"""`haltwise learn` and `haltwise judge` on runs of a stranger."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from logged_rows import with_rows_of_training, write_log

import haltwise
from haltwise import Curves, FitWarning, InputError, RunMonitor
from haltwise._core.errors import DataWarning
from haltwise.cli import cli
from haltwise.cli import learn as learn_command
from haltwise.curves import certify_curves, forecast, load_curve_model, read
from haltwise.curves.curves import Floats
from haltwise.curves.learning import Learned, folds_of, learn, rows_of
from haltwise.curves.levels import GiveUps, candidate_levels, level_for
from haltwise.curves.rules.last_improvement import LastImprovementRule
from haltwise.curves.stop_model import StopCard, StopModel
from haltwise.curves.stopping import learn_to_stop
from haltwise.evaluation.give_up import judge_curves, judge_learned
from haltwise.evaluation.stop_early import judge_stops
from haltwise.models import card_of
from haltwise.report.replay import replay


def some_runs(num: int, seed: int, groups: int = 5) -> Curves:
    """Runs that fall exponentially, with noise, to ends of which some lie below the target."""
    rng = np.random.default_rng(seed)
    ends, speeds = rng.uniform(0.5, 1.6, (num, 1)), rng.uniform(0.05, 0.3, (num, 1))
    losses = ends + (3 - ends) * np.exp(-speeds * np.arange(40)) + 0.02 * rng.normal(size=(num, 40))
    return Curves.from_matrix(
        losses, target=1.0, budget=39.0, group=[f"g{i % groups}" for i in range(num)]
    )


@pytest.fixture(scope="module")
def learned() -> Learned:
    """What is learned from 150 runs of three groups."""
    return learn(some_runs(150, 0, groups=3))


def test_what_is_learned_saves_and_loses_little_on_runs_of_its_kind(learned: Learned) -> None:
    record = judge_curves(learned.model, some_runs(150, 1))
    at = record.levels["0.05"]
    assert at.saved.value > 0.4 * record.oracle_saved
    assert at.lost.value < 0.1
    assert record.quarter_auc > 0.8
    # A card says what its own runs say.
    own = judge_learned(learned)
    for name, found in learned.model.card.levels.items():
        assert own.levels[name].saved.value == pytest.approx(found.saved)
        assert own.levels[name].lost.value == pytest.approx(found.lost)


def test_rows_of_training_alone_change_nothing_of_what_validations_say(tmp_path: Path) -> None:
    """A monitor in a loop is updated with the metric, and `haltwise watch` sees every row."""
    groups = [f"g{i % 3}" for i in range(150)]

    def both(seed: int) -> tuple[Curves, Curves]:
        losses = some_runs(150, seed).values[:, 0].reshape(150, 40)
        return with_rows_of_training(losses, groups, target=1.0, budget=40.0)

    model, expected = (learn(runs).model for runs in both(0))
    assert model.digest == expected.digest
    assert model.card == expected.card
    whole, alone = both(1)
    assert judge_curves(model, whole) == judge_curves(model, alone)
    with pytest.warns(DataWarning, match="100 % of these runs are among those"):
        judge_curves(model, both(0)[0])
    shown, expected_shown = (
        replay(model, runs, num_runs=5, min_points=8) for runs in (whole, alone)
    )
    assert shown == expected_shown
    for curve, short in zip(whole.select([0, 1]), alone.select([0, 1]), strict=True):
        known, chance, score = curve.is_measured, model.chance(curve), model.score(curve)
        np.testing.assert_array_equal(score[known], model.score(short))
        assert np.isposinf(score[~known]).all()
        # Until the next validation the last one stands, and before the first nothing does.
        np.testing.assert_array_equal(chance[2:-1], np.repeat(model.chance(short), 3)[:-3])
        assert (chance[:2] == 1).all()
        for num in (1, 2, 3, 60, 61, 120):
            assert model.last_score(curve.until(num)) == pytest.approx(score[num - 1])
            assert model.last_chance(curve.until(num)) == pytest.approx(chance[num - 1])
        assert model.unusual(curve.until(61)) == model.unusual(short.until(20))
    found, same = (
        certify_curves(model, runs, level=0.1, confidence=None) for runs in (whole, alone)
    )
    assert found.statement == same.statement
    model.save(tmp_path / "model.safetensors")
    num_stopped = 0
    failed = np.flatnonzero(~alone.succeeded)[:20]
    for curve, short in zip(whole.select(failed), alone.select(failed), strict=True):
        monitor = RunMonitor(model, target=1.0, budget=40.0, lost=0.05, cost_unit="step")
        for cost, loss, train in zip(short.cost, *short.columns.values(), strict=True):
            monitor.update(loss, cost=cost, train_loss=train)
            if monitor.should_stop:
                break
        write_log(curve, tmp_path / "log.csv")
        options = ["--target", "1", "--budget", "40", "--lost", "0.05", "--once"]
        done = CliRunner().invoke(
            cli,
            ["watch", f"{tmp_path}/log.csv", "--rule", f"{tmp_path}/model.safetensors", *options],
        )
        verdict = f"give up, loss {loss:.4g} at {cost:g}: " if monitor.should_stop else "is spent"
        assert verdict in done.output
        num_stopped += monitor.should_stop
    assert num_stopped > 5


def test_successes_beyond_the_budget_are_told(tmp_path: Path) -> None:
    runs = some_runs(150, 0, groups=3)
    late = (runs.succeeded & (runs.spent > 15.0)).sum()
    assert 10 < late < runs.succeeded.sum()
    runs = replace(runs, budget=np.full(150, 15.0))
    message = f"{late} of 150 runs meet their target beyond their budget, and count as successes"
    with pytest.warns(DataWarning, match=message):
        model = learn(runs).model
    others = replace(some_runs(150, 1), budget=np.full(150, 15.0))
    with pytest.warns(DataWarning, match="beyond their budget"):
        assert judge_curves(model, others).runs == 150
    # Following the advice ends the warning, also where budgets are rounded down by a digit.
    rounded = replace(others, budget=others.budget * (1 - 1e-12))
    with pytest.warns(DataWarning, match="3600 points of 150"):
        rounded.within_budgets().save(tmp_path / "within.npz")
    assert judge_curves(model, read(tmp_path / "within.npz")).succeeded < others.succeeded.sum()
    others.save(tmp_path / "beyond.npz")  # of a budget that nobody names nothing is left out
    assert read(tmp_path / "beyond.npz").num_points.tolist() == others.num_points.tolist()
    larger = replace(others, budget=np.full(150, 39.0))
    assert judge_curves(model, larger).succeeded == others.succeeded.sum()


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
def test_points_beyond_a_named_budget_are_left_out(tmp_path: Path) -> None:
    lines = ["run,step,loss"]
    for name, (slope, last) in {"a": (0.5, 5), "b": (0.25, 9), "c": (0.0, 3)}.items():
        lines += [f"{name},{step},{3 - slope * step}" for step in range(last)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines))
    with pytest.warns(DataWarning, match="4 points of 1 of 3 runs lie beyond their budget"):
        runs = read(path, cost="step", metric="loss", target=1.0, budget=4)
    assert runs.num_points.tolist() == [5, 5, 3]
    assert (runs.succeeded.tolist(), runs.spent.tolist()) == ([True, False, False], [4, 4, 2])
    judge = ["judge", "training-runs", str(path), "--cost", "step", "--metric", "loss"]
    judge += ["--target", "1", "--json", str(tmp_path / "x.json"), "--budget"]
    with pytest.warns(DataWarning, match="4 points of 1 of 3 runs lie beyond their budget"):
        CliRunner().invoke(cli, [*judge, "4"])
    assert json.loads((tmp_path / "x.json").read_text())["spent"] == 10
    CliRunner().invoke(cli, [*judge, "8"])
    assert json.loads((tmp_path / "x.json").read_text())["spent"] == 14


def test_runs_whose_first_validation_lies_beyond_a_named_budget_are_left_out() -> None:
    runs, steps = [], np.arange(1.0, 31.0)
    for curve in some_runs(60, 0):
        loss = curve.loss[:30] - 0.3
        runs.append({"step": steps, "loss": loss, "train_loss": loss})
    late = [{**run, "loss": np.where(steps < 25, np.nan, 0.5)} for run in runs[:2]]
    later = {"step": steps + 20, "loss": np.full(30, 0.5), "train_loss": np.full(30, 0.5)}

    def within(*runs: dict[str, Floats]) -> Curves:
        settings: dict[str, Any] = {"metric": "loss", "target": 1.0, "budget": 20.0}
        groups = [f"g{i % 5}" for i in range(len(runs))]
        return Curves.from_runs(runs, cost="step", group=groups, **settings).within_budgets()

    with pytest.warns(DataWarning, match="610 points of 61 of 61 .*, and 1 of these runs whole"):
        assert within(*runs, late[0]).num_runs == 60
    with pytest.warns(DataWarning, match="650 points of 63 of 63 .*, and 3 of these runs whole"):
        found = within(late[0], *runs, later, late[1])
    with pytest.warns(DataWarning, match="600 points of 60 of 60 .* and are left out: a run"):
        expected = within(*runs)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.offset, expected.offset)
    assert found.spent.tolist() == [curve.cost[curve.success] for curve in expected]
    assert found.name.tolist() == [*map(str, range(1, 61))]
    with pytest.raises(InputError, match=r"every point lies beyond .* in units of step"):
        within(later)


def test_a_metric_that_was_never_measured_is_named(learned: Learned) -> None:
    runs = Curves.from_runs(
        [{"loss": np.full(5, np.nan), "train_loss": np.arange(5.0)}] * 30,
        metric="loss",
        target=1.0,
        budget=9.0,
    )
    with pytest.warns(DataWarning, match="2 points of 1 of 30 runs"):
        some = replace(runs, budget=np.append(np.full(29, np.nan), 2.0)).within_budgets()
    assert some.num_points.tolist() == [5] * 29 + [3]
    assert learned.model.unusual(runs[0]) == ()
    for ask in (
        learn,
        partial(judge_curves, learned.model),
        partial(learn_to_stop, price=0.01),
        partial(certify_curves, learned.model, level=0.1, confidence=0.9, grouped=False),
    ):
        with pytest.raises(InputError, match="no run ever measured its metric 'loss'"):
            ask(runs)


def short_runs(seed: int, target: float | None = 0.3) -> Curves:
    """Runs of eight epochs."""
    rng = np.random.default_rng(seed)
    ends, speeds = rng.uniform(0.1, 0.7, (120, 1)), rng.uniform(0.3, 1.5, (120, 1))
    losses = ends + (1 - ends) * np.exp(-speeds * np.arange(1, 9))
    losses += 0.01 * rng.standard_normal((120, 8))
    return Curves.from_matrix(
        losses, np.arange(1, 9.0), target=target, group=[str(i % 10) for i in range(120)],
        cost_unit="epochs",
    )  # fmt: skip


def watched(curves: Curves, model: Any, **settings: Any) -> list[int | None]:
    """The point at which a monitor ends each run, None where it does not."""
    ends: list[int | None] = []
    for curve in curves:
        monitor = RunMonitor(model, direction="min", budget=8.0, cost_unit="epochs", **settings)
        stop = None
        for point, (loss, cost) in enumerate(zip(curve.loss, curve.cost, strict=True)):
            monitor.update(float(loss), cost=float(cost))
            if monitor.should_stop:
                stop = point
                break
        ends.append(stop)
    return ends


def test_what_is_judged_is_what_a_monitor_does_in_runs_of_few_points() -> None:
    model, others = learn(short_runs(0)).model, short_runs(1)
    for name, at in judge_curves(model, others).levels.items():
        saved = lost = 0.0
        stops = watched(others, model, target=0.3, lost=float(name))
        for run, stop in enumerate(stops):
            success, spent = others.success[run], others.spent[run]
            if stop is not None and (success < 0 or stop < success):
                saved += spent - others[run].cost[stop]
                lost += success >= 0
        assert at.saved.value == pytest.approx(saved / others.spent.sum())
        assert at.lost.value == pytest.approx(lost / others.succeeded.sum())


def test_levels_in_another_unit_are_judged_as_a_monitor_translates_them() -> None:
    """By the budget of each run, of which some have ten times that of others."""
    model, rng = learn(short_runs(0)).model, np.random.default_rng(2)
    budgets = np.tile([20.0, 200.0], 60)
    ends, speeds = rng.uniform(0.1, 0.7, (120, 1)), rng.uniform(0.3, 1.5, (120, 1))
    losses = ends + (1 - ends) * np.exp(-speeds * np.arange(1, 9))
    others = Curves.from_matrix(
        losses, np.arange(1, 9) / 8 * budgets[:, None], target=0.3, budget=budgets, cost_unit="kWh"
    )
    for name, at in judge_curves(model, others).levels.items():
        saved = 0.0
        for run, curve in enumerate(others):
            monitor = RunMonitor(
                model, direction="min", target=0.3, budget=budgets[run], lost=float(name)
            )
            for loss, cost in zip(curve.loss, curve.cost, strict=True):
                monitor.update(float(loss), cost=float(cost))
                if monitor.should_stop:
                    saved += max(others.spent[run] - cost, 0.0)
                    break
        assert at.saved.value == pytest.approx(saved / others.spent.sum())
        assert at.saved.value > 0


def test_stops_are_judged_where_a_monitor_stops_runs_of_few_points() -> None:
    price, others = 0.1, short_runs(1, None)  # dear, so that the first points are best
    model = learn_to_stop(short_runs(0, None), price).model
    record = judge_stops(model, others)
    charges = []
    for curve, stop in zip(others, watched(others, model), strict=True):
        end = 7 if stop is None else stop
        charges.append(np.minimum.accumulate(curve.loss)[end] + price * curve.cost[end])
    assert record.ways["model"].j.value == pytest.approx(np.mean(charges))
    with pytest.raises(InputError, match=r"succeed or not.*leave the target out"):
        RunMonitor(model, direction="min", target=0.3)


def test_a_report_of_what_is_learned_names_the_command_that_writes_one(
    learned: Learned, tmp_path: Path
) -> None:
    """It is evaluated by no `haltwise evaluate`."""
    learned.model.save(tmp_path / "model.safetensors")
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert f"haltwise replay FILE --model {tmp_path}" in str(done.exception)


def test_a_level_is_chosen_on_the_other_folds(learned: Learned) -> None:
    curves, scores = learned.curves, learned.scores
    levels = candidate_levels(curves, scores)
    found = learned.unseen(0.05)
    for fold in np.unique(learned.folds):
        mine, others = (np.flatnonzero(at) for at in (learned.folds == fold, learned.folds != fold))
        seen = GiveUps.of(curves.select(others), [scores[run] for run in others], levels)
        level = level_for(seen, curves.group[others], 0.05, margin=0.5)
        own = [scores[run] for run in mine]
        expected = GiveUps.of(curves.select(mine), own, np.array([level]))
        np.testing.assert_allclose(found.saved[mine], expected.saved)
        np.testing.assert_array_equal(found.lost[mine], expected.lost)


def test_the_last_score_is_the_last_of_the_scores(learned: Learned) -> None:
    model = learned.model
    for curve in some_runs(5, 3):
        scores = model.score(curve)
        for num in (1, 2, 3, 20, 40):
            assert model.last_score(curve.until(num)) == pytest.approx(scores[num - 1], rel=1e-12)


def test_the_price_is_the_level(learned: Learned) -> None:
    """Giving up below chance / (cost to come) = price is best among those at any other level."""
    fresh = some_runs(300, 2)
    scores = [learned.model.score(curve) for curve in fresh]
    price = 1 / 30  # thirty steps are worth a success
    worth = []
    for factor in (0.03, 1.0, 30.0):
        level = learned.model.level(price=factor * price)
        stops = GiveUps.of(fresh, scores, np.array([level]))
        worth.append(float(price * stops.saved.sum() - stops.lost.sum()))
    assert worth[1] == max(worth)


def test_no_group_is_on_both_sides_of_a_fold() -> None:
    curves = some_runs(100, 0, groups=9)
    folds = folds_of(curves, 0)
    for group in np.unique(curves.group):
        assert len(np.unique(folds[curves.group == group])) == 1
    assert set(folds) == set(range(9))


@pytest.mark.parametrize("size", [1, 2])
def test_it_is_learned_from_tasks_of_a_run_or_two(size: int) -> None:
    """They tell no easier targets, which are what other runs of a task have reached."""
    runs, others = some_runs(80, 0), some_runs(80, 1)
    tasks = np.array([str(i // size) for i in range(80)])
    record = judge_curves(learn(replace(runs, task=tasks)).model, others)
    assert record.levels["0.05"].saved.value > 0.4 * record.oracle_saved
    assert record.levels["0.05"].lost.value < 0.15


def test_easier_targets_are_never_harder() -> None:
    curves = some_runs(50, 0)
    rows = rows_of(curves, 0)
    hopeful = rows.success[rows.run == int(np.flatnonzero(curves.succeeded)[0])]
    assert hopeful.all()  # a run that meets its target meets every easier one
    assert rows.weight.sum() == pytest.approx(2 * 50, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.nan}, "no run has a target"),
        ({"target": -9.0}, "0 of 60 runs met their target"),
        ({"target": 9.0}, "60 of 60 runs met their target"),
    ],
)
def test_what_cannot_be_learned_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        learn(some_runs(60, 0).with_targets(change["target"]))


def test_what_runs_that_ended_early_count_as_is_one_of_two_words() -> None:
    how: Any = "left_out"
    with pytest.raises(InputError, match="must be 'failures' or 'left out', got 'left_out'"):
        learn(some_runs(60, 0), ended_early=how)


def test_runs_with_nothing_to_spend_are_left_out(learned: Learned) -> None:
    short = Curves.from_runs([{"loss": [2.0]}] * 3, metric="loss", target=1.0)
    with pytest.raises(InputError, match="no run has a budget above 0"):
        judge_curves(learned.model, short)
    some = some_runs(60, 0)
    mixed = replace(some, budget=np.where(np.arange(60) < 2, 0.0, some.budget))
    with pytest.warns(DataWarning, match="2 of 60 runs are left out: their budget is 0"):
        assert judge_curves(learned.model, mixed).runs == 58


def test_runs_of_another_kind_are_warned_of(learned: Learned) -> None:
    model = learned.model
    jumpy = np.where(np.arange(40) % 2, 2.9, 3.0) + np.zeros((30, 1))
    with pytest.warns(FitWarning, match="beyond what the model was learned on"):
        judge_curves(model, Curves.from_matrix(jumpy, target=1.0, budget=39.0))
    curve = Curves.from_matrix(jumpy[:1], target=1.0, budget=39.0)[0]
    assert "beyond what it was learned on" in model.why(curve)
    own = some_runs(60, 1)[0]
    assert "beyond" not in model.why(own.until(20))


def test_without_the_columns_it_was_learned_on_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accuracies that jump late, as losses foretell: without these all looks hopeless for long."""
    monkeypatch.setitem(forecast._BOOSTED, "max_iter", 20)
    rng = np.random.default_rng(0)
    ends, epochs = rng.uniform(0.4, 0.95, (60, 1)), np.arange(8)
    late = epochs >= rng.uniform(4, 6, (60, 1))
    frame = {
        "run": np.repeat(np.arange(60), 8),
        "epoch": np.tile(epochs, 60),
        "accuracy": (np.where(late, ends, 0.3) + 0.02 * rng.normal(size=(60, 8))).ravel(),
        "val_loss": (1.6 - ends + 0.9 * 0.5**epochs).ravel(),
    }
    runs = Curves.from_frame(frame, run="run", cost="epoch", metric="accuracy", target=0.7)
    model = learn(runs, most_rows=300).model

    def num_given_up(*columns: str) -> int:
        num = 0
        for curve in list(runs)[:15]:
            monitor = RunMonitor(model, target=0.7, budget=7, direction="max", lost=0.05)
            for place in range(curve.num_points):
                told = {name: curve.columns[name][place] for name in columns}
                monitor.update(curve.columns["accuracy"][place], cost=curve.cost[place], **told)
            num += monitor.should_stop
        return num

    assert num_given_up("val_loss") > 3
    with pytest.warns(FitWarning, match=r"had a column valid_loss, val_loss or eval_loss beside"):
        assert num_given_up() == 0


def test_one_group_is_warned_of() -> None:
    with pytest.warns(DataWarning, match="one group"):
        folds = folds_of(some_runs(60, 0, groups=1), 0)
    assert len(np.unique(folds)) > 1


def test_a_run_without_a_target_cannot_be_forecast(learned: Learned) -> None:
    model = learned.model
    with pytest.raises(InputError, match="no target"):
        model.score(Curves.from_matrix([[3.0, 2.0]])[0])
    with pytest.raises(InputError, match=r"no level for a share of 0\.3"):
        model.level(lost=0.3)


def test_commands_write_a_model_a_report_and_a_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(forecast._BOOSTED, "max_iter", 10)  # how good it is is judged above
    for name, seed in (("past", 0), ("new", 1)):
        lines = ["run,team,step,loss"]
        for number, curve in enumerate(some_runs(80, seed)):
            lines += [
                f"{number},t{number % 3},{step},{loss}"
                for step, loss in zip(curve.cost, curve.loss, strict=True)
            ]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    named = ["--cost", "step", "--metric", "loss", "--group", "team", "--target", "1.0"]
    out, judged = tmp_path / "model", tmp_path / "judged.json"
    done = CliRunner().invoke(
        cli, ["learn", str(tmp_path / "past.csv"), *named, "--out", str(out), "--price", "0.02"]
    )
    assert done.exit_code == 0, done.output
    assert "price 0.02" in done.output
    page = (out / "report.html").read_text()
    assert "Where it fails" in page
    assert "past runs on" in page
    assert load_curve_model(out).card.num_groups == 3
    kept = json.loads((out / "record.json").read_text())
    done = CliRunner().invoke(
        cli, ["judge", str(out), str(tmp_path / "new.csv"), *named, "--json", str(judged)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(judged.read_text())
    assert (found["runs"], found["groups"]) == (80, 3)
    for name in found["levels"]:
        assert found["levels"][name].keys() == kept["levels"][name].keys()
    assert 0 < found["oracle_saved"] < 1
    for level in ("0.01", "0.02", "0.05"):
        assert 0 <= found["levels"][level]["saved"] <= found["oracle_saved"]
        assert 0 <= found["levels"][level]["lost"] <= 1
    # In a unit of another name levels are translated by the budget; in the model's they hold.
    levels = []
    rows = [line.split(",") for line in (tmp_path / "new.csv").read_text().splitlines()[1:]]
    lines = [f"{run},{team},{10 * float(cost)},{loss}" for run, team, cost, loss in rows]
    (tmp_path / "other.csv").write_text("\n".join(["run,team,time,loss", *lines]))
    for unit in ([], ["--cost-unit", "step"], ["--cost-unit", "weeks"]):
        of_time = ["--cost", "time", *named[2:], *unit]
        done = CliRunner().invoke(
            cli, ["judge", str(out), str(tmp_path / "other.csv"), *of_time, "--json", str(judged)]
        )
        assert done.exit_code == 0, done.output
        levels.append(json.loads(judged.read_text())["levels"]["0.05"]["level"])
    own = found["levels"]["0.05"]["level"]
    assert levels == pytest.approx([own / 10, own, own / 10])
    done = CliRunner().invoke(cli, ["learn", str(tmp_path / "past.csv"), "--out", str(out)])
    assert done.exit_code != 0
    assert "there is a model" in str(done.exception or done.output)


def test_an_interrupt_among_the_sizes_costs_neither_figures_nor_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fewer runs would have been worth takes as long as all that was learned before."""
    monkeypatch.setitem(forecast._BOOSTED, "max_iter", 10)
    rows = [
        f"{number},t{number % 3},{step},{loss}"
        for number, curve in enumerate(some_runs(80, 0))
        for step, loss in zip(curve.cost, curve.loss, strict=True)
    ]
    (tmp_path / "past.csv").write_text("\n".join(["run,team,step,loss", *rows]))
    named = ["--cost", "step", "--metric", "loss", "--group", "team", "--target", "1.0"]
    learning = ["learn", str(tmp_path / "past.csv"), *named, "--out"]
    whole = CliRunner().invoke(cli, [*learning, str(tmp_path / "whole"), "--no-sizes"])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(learn_command, "judge_sizes", interrupted)
    done = CliRunner().invoke(cli, [*learning, str(tmp_path / "half")])
    assert done.exit_code != 0
    half = json.loads((tmp_path / "half" / "record.json").read_text())
    assert half == json.loads((tmp_path / "whole" / "record.json").read_text())
    assert "Where it fails" in (tmp_path / "half" / "report.html").read_text()
    assert "successes that may be lost" in whole.output
    assert "successes that may be lost" in done.output


JUDGE, LEARN = ("judge", "training-runs", "none.csv"), ("learn", "none.csv")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*JUDGE, "--confidence", "0.9"), "give --certify LEVEL, too"),
        ((*JUDGE, "--certify", "1.5"), "level must be above 0 and below 1"),
        ((*JUDGE, "--certify", "0.1", "--confidence", "7"), "confidence must be above 0 and below"),
        (
            (*JUDGE, "--tuning-runs", "x", "--metric", "acc", "--certify", "0.1", "--adopt"),
            "--metric and --certify and --adopt cannot go with --tuning-runs",
        ),
        (("judge", "none", "none.csv"), "a monitor is judged with --tuning-runs"),
        (("judge", "x", "runs", "--tuning-runs", "./runs"), "are the runs to judge by"),
        ((*LEARN, "--out", __file__), "cannot be written in; name another directory"),
        ((*LEARN, "--out", "x", "--price", "1", "--value-of-success", "inf"), "--value-of-success"),
        (
            (*LEARN, "--out", "x", "--price", "1e-300", "--value-of-success", "1e37"),
            "--price / --value-of-success must be a finite number above 0, got 0",
        ),
        ((*LEARN, "--out", "x", "--value-of-success", "2"), "is what a --price is set against"),
        (
            (*LEARN, "--out", "x", "--price", "1", "--stop-early", "--target", "1", "--no-sizes"),
            "--target and --sizes cannot go with --stop-early",
        ),
        *(
            (
                (*command, "--target", "1", "--target-quantile", "0.5"),
                "--target and --target-quantile both say what a success is; give one",
            )
            for command in (JUDGE, (*LEARN, "--out", "x"), ("replay", "none.csv"))
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_read(
    arguments: tuple[str, ...], sentence: str
) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert sentence in f"{done.exception}{done.output}"


@pytest.mark.parametrize("command", ["learn", "judge", "replay"])
def test_the_data_directory_of_curves_is_not_that_of_images(command: str) -> None:
    told = CliRunner().invoke(cli, [command, "--help"]).output
    assert "curves/" in told
    assert "mnist" not in told


def test_runs_that_lie_there_twice_are_warned_of(tmp_path: Path) -> None:
    rows = [f"r{i},{k},{1 - 0.9**k * i / 24}" for i in range(24) for k in range(20)]
    for name in ("runs.csv", "runs-copy.csv"):
        (tmp_path / name).write_text("\n".join(["run,step,loss", *rows, ""]))
    past = haltwise.curves.read(tmp_path, cost="step", metric="loss")
    message = r"24 of 48 runs equal one before them .* tried on runs that it has seen"
    with pytest.warns(DataWarning, match=message):
        haltwise.curves.learn_to_stop(past, price=0.1)
    with pytest.warns(DataWarning, match=message):
        folds_of(past, 0)
    named = past.with_groups([name.partition(" ")[0] for name in past.name])
    assert folds_of(named, 0)[0] == folds_of(named, 0)[24]


def test_no_seed_is_negative() -> None:
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        learn(some_runs(60, 0), seed=-1)


# --- Early stops --------------------------------------------------------------------------------


def test_a_stop_is_learned_judged_and_watched_for_from_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    losses = np.exp(-rng.uniform(0.05, 0.5, (48, 1)) * np.arange(30))
    for name, half in (("runs.csv", losses[:24]), ("others.csv", losses[24:])):
        lines = [
            f"r{run},p{run % 3},{epoch},{loss:.6f}"
            for run, row in enumerate(half)
            for epoch, loss in enumerate(row)
        ]
        (tmp_path / name).write_text("\n".join(["run,project,epoch,loss", *lines, ""]))
    runs, out = str(tmp_path / "runs.csv"), str(tmp_path / "early")
    columns = ["--metric", "loss", "--cost", "epoch"]
    reading = ["--group", "project", *columns]
    learning = ["learn", runs, *reading, "--stop-early", "--out", out]
    missing = CliRunner().invoke(cli, learning)
    assert "--stop-early needs --price" in str(missing.exception)
    assert not Path(out).exists()
    done = CliRunner().invoke(cli, [*learning, "--price", "0.02"])
    assert done.exit_code == 0, done.output
    assert "best equal" in done.output
    page = Path(out, "report.html").read_text()
    assert "When to stop a run early" in page
    marks = StopModel.load(Path(out, "model.safetensors")).card.seen
    assert len(marks) == 24 * 12
    assert marks[:12] not in page  # which is for people
    with pytest.raises(DataWarning, match="about 100 % of these runs are among those"):
        CliRunner().invoke(cli, ["judge", out, runs, *reading], catch_exceptions=False)
    others = str(tmp_path / "others.csv")
    judged = ["judge", out, others, *reading, "--json", str(tmp_path / "found.json")]
    assert CliRunner().invoke(cli, judged).exit_code == 0
    unused = CliRunner().invoke(cli, [*judged, "--target-quantile", "0.5"])
    assert "--target-quantile cannot be given here" in str(unused.exception)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ways"]["model"]["j"]["value"] < found["ways"]["to the end"]["j"]["value"]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["epoch,loss", *(f"{k},{0.5**k:.6f}" for k in range(25)), ""]))
    watching = ["watch", str(log), "--rule", out, *columns, "--once", "--exit-code"]
    watched = CliRunner().invoke(cli, watching)
    assert watched.exit_code == 3
    assert "log.csv: stop, loss" in watched.output
    log.write_text(log.read_text().replace("epoch,loss", "seconds,loss"))
    watching[watching.index("epoch")] = "seconds"
    other = CliRunner().invoke(cli, watching)
    assert "learned at a price per unit of epoch" in str(other.exception)
    assert "say --cost-unit 'epoch'" in str(other.exception)
    assert CliRunner().invoke(cli, [*watching, "--cost-unit", "epoch"]).exit_code == 3


def test_what_nobody_names_is_what_the_model_was_learned_on(tmp_path: Path) -> None:
    card = StopCard("score", "epoch", price=0.02, budget=30.0, level=1.0, direction="max")
    StopModel(LastImprovementRule(0.02, 0.5), card).save(tmp_path / "model.safetensors")
    rows = [f"{k},{60 * k},{0.5**k:.6f},{1 - 0.5**k:.6f}" for k in range(25)]
    log, found = tmp_path / "log.csv", tmp_path / "found.json"
    log.write_text("\n".join(["epoch,seconds,val_loss,score", *rows, ""]))
    named = ["--cost", "epoch", "--metric", "score", "--direction", "max"]
    judged, watched = [], []
    for options in (named, named[:2], []):
        both = [*options, "--json", str(found)]
        assert CliRunner().invoke(cli, ["judge", str(tmp_path), str(log), *both]).exit_code == 0
        judged.append(found.read_text())
        watching = ["watch", str(log), "--rule", str(tmp_path), "--once", *options]
        watched.append(CliRunner().invoke(cli, watching).output)
    assert len({*judged}) == len({*watched}) == 1
    assert ": stop, score 0.9" in watched[0]
    log.write_text("epoch,val_loss\n0,1\n1,0.5\n2,0.5\n3,0.5\n")
    with pytest.warns(DataWarning, match="the metric is 'val_loss'"):
        other = CliRunner().invoke(cli, ["watch", str(log), "--rule", str(tmp_path), "--once"])
    assert "measures no 'score' yet, on which the rule was learned" in str(other.exception)


@pytest.mark.parametrize("place", ["", "model.safetensors"])
@pytest.mark.parametrize(
    "load", [haltwise.load, haltwise.load_halting, haltwise.HaltingMonitor, card_of]
)
def test_what_was_learned_of_curves_is_told_from_other_weights(
    load: Callable[[Path], object], place: str, learned: Learned, tmp_path: Path
) -> None:
    learned.model.save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="that haltwise learn wrote; load it by") as raised:
        load(tmp_path / place)
    (name,) = re.findall(r"load it by haltwise\.curves\.(\w+)", str(raised.value))
    found = getattr(haltwise.curves, name)(tmp_path / place)
    assert repr(found) == repr(learned.model)
