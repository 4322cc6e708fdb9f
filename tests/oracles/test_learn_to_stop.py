"""When to stop a loop, learned from few runs: known answers, and what is refused or left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from logged_rows import with_rows_of_training, write_log

from haltwise import DataWarning, InputError, RunMonitor
from haltwise.cli import cli
from haltwise.curves import stopping
from haltwise.curves.curves import Curves, Floats, Integers
from haltwise.curves.levels import quantile_levels, stops_below
from haltwise.curves.rules.last_improvement import LastImprovementRule
from haltwise.curves.rules.learned import ForecastRule
from haltwise.curves.shipped import load_curve_model, load_curve_rule
from haltwise.curves.stop_model import StopCard, StopModel
from haltwise.curves.stopping import LearnedStop, learn_to_stop
from haltwise.evaluation.stop_early import judge_learned_stop, judge_stops

PRICE = 0.01
MOST = 0.25, 0.5, 1.0


def _losses(seed: int, num: int = 40) -> Floats:
    """Runs of 40 steps that fall to 0, the slowest in some 20 steps, the fastest in 2."""
    rng = np.random.default_rng(seed)
    noise = 0.003 * rng.standard_normal((num, 40))
    found: Floats = np.exp(-rng.uniform(0.05, 0.5, (num, 1)) * np.arange(40)) + noise
    return found


def _stops(model: StopModel, curves: Curves) -> Integers:
    """Where a model stops runs of forty points."""
    stops = stops_below(model.scores(curves), np.array([model.fixed_level]))[:, 0]
    return np.minimum(stops, 39)


def _curves(losses: Floats) -> Curves:
    return Curves.from_matrix(losses, group=[f"group {i % 4}" for i in range(len(losses))])


@pytest.fixture(scope="module")
def learned() -> LearnedStop:
    return learn_to_stop(_curves(_losses(0)), PRICE)


def test_it_costs_little_more_than_the_oracle(learned: LearnedStop) -> None:
    losses = _losses(1, 200)
    bills = np.minimum.accumulate(losses, 1) + PRICE * np.arange(40)
    stops = _stops(learned.model, _curves(losses))
    own = bills[np.arange(200), stops].mean()
    fixed, oracle = bills.mean(0).min(), bills.min(1).mean()
    assert (fixed - own) / (fixed - oracle) > 0.8
    # What it says that it saves is what it saves on other runs.
    card = learned.model.card
    assert bills[:, -1].mean() - own == pytest.approx(card.saved, abs=4 * card.standard_error)


def test_a_monitor_stops_where_the_rule_does(learned: LearnedStop) -> None:
    losses = _losses(2, 3)
    curves = _curves(losses)
    for row, stop in zip(losses, _stops(learned.model, curves).tolist(), strict=True):
        monitor = RunMonitor(learned.model, budget=39, min_points=1)
        for value in row:
            monitor.update(value)
            if monitor.should_stop:
                break
        assert monitor.steps == min(stop + 1, 40)


def test_targets_of_recorded_runs_make_no_difference(learned: LearnedStop) -> None:
    """Some formats have them, and a monitor that stops early takes none."""
    targets = np.linspace(0.01, 0.5, 40)
    assert (
        learn_to_stop(_curves(_losses(0)).with_targets(targets), PRICE).model.digest
        == learned.model.digest
    )
    curves = _curves(_losses(1))
    found, expected = (
        judge_stops(learned.model, each) for each in (curves.with_targets(targets), curves)
    )
    assert found == expected
    curve = curves[0]
    with_target = curve._replace(target=0.1)
    np.testing.assert_array_equal(learned.model.score(with_target), learned.model.score(curve))
    assert learned.model.last_score(with_target) == learned.model.last_score(curve)


@pytest.mark.parametrize("budget", [np.nan, 39.0])
@pytest.mark.parametrize("rule", [ForecastRule(PRICE), LastImprovementRule(PRICE, 0.8)])
def test_the_last_score_is_the_last_of_the_scores(
    rule: ForecastRule | LastImprovementRule, budget: float
) -> None:
    model = StopModel(rule.fit(_curves(_losses(0))), _card(budget=39.0))
    curve = _curves(_losses(1))[0]._replace(budget=budget)
    scores = model.score(curve)
    assert np.isinf(scores[:2]).all()
    for num in (1, 2, 3, 20, 40):
        assert model.last_score(curve.until(num)) == pytest.approx(scores[num - 1], rel=1e-12)


@pytest.mark.parametrize("seed", [2, 4, 6])  # for which other margins give other levels
def test_its_level_is_the_latest_of_those_as_good_within_half_a_standard_error(seed: int) -> None:
    curves = _curves(_losses(seed))
    rule = stopping.NotEarly(LastImprovementRule.candidates(PRICE)[2])
    bills = stopping.worth_of(curves) + PRICE * curves.cost
    found = stopping._try(rule, curves, bills, np.arange(40) % 3)
    scores = [rule.score(curve) for curve in curves]
    charges = []
    for level in quantile_levels(scores).tolist():  # the lowest stops latest
        stops = [next((t for t, x in enumerate(own) if x < level), 39) for own in scores]
        charges.append([bills[40 * run + stop] for run, stop in enumerate(stops)])
    best = np.array(min(charges, key=np.mean))
    excess = [np.array(own) - best for own in charges]
    errors = [own.mean() / max(own.std(ddof=1) / np.sqrt(40), 1e-300) for own in excess]
    within = {most: next(i for i, x in enumerate(errors) if x <= most) for most in MOST}
    np.testing.assert_allclose(found.charges, charges[within[0.5]])
    assert within[MOST[0]] > within[0.5] > within[MOST[2]]


@pytest.mark.parametrize(("lead", "takes_over"), [(0.9, False), (1.1, True)])
def test_a_rule_of_one_line_takes_over_if_it_leads_by_a_standard_error(
    lead: float, takes_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lead over what is learned is `lead` standard errors of it, run by run."""
    spread = np.linspace(-1, 1, 40)
    spread *= np.sqrt(40) / spread.std(ddof=1)  # a standard error of 1

    def tried(rule: object, curves: Curves, bills: Floats, fold: Integers) -> object:
        del bills, fold
        is_simple = isinstance(rule, stopping.NotEarly)
        charges = -100 - lead - spread if is_simple else np.full(40, -100.0)
        return stopping._Tried(rule, 0.1, np.zeros(40, np.int64), charges)  # type: ignore[arg-type]

    monkeypatch.setattr(stopping, "_try", tried)
    found = learn_to_stop(_curves(_losses(0)), PRICE)
    assert isinstance(found.model.rule, LastImprovementRule) == takes_over


def test_nothing_is_stopped_where_all_steps_pay() -> None:
    starts = 1 + np.arange(24)[:, None] / 100
    found = learn_to_stop(_curves(starts - 0.02 * np.arange(20)), PRICE)
    assert (found.model.card.level, found.model.card.saved) == (None, 0.0)
    assert found.stops.tolist() == [19] * 24


def test_what_a_stop_returns_may_be_another_loss() -> None:
    """The loss seen falls for ever, and the one returned rises from the eighth step on."""
    losses = 1 - 0.02 * np.arange(30) + 0.001 * np.random.default_rng(0).random((24, 30))
    returned = np.tile(np.abs(np.arange(30) - 8.0), 24)
    found = learn_to_stop(_curves(losses), PRICE, returned=returned)
    assert found.model.card.saved > 5


def test_bad_input_is_one_sentence_and_nothing_is_lost_silently() -> None:
    losses = _losses(3, 22)
    with pytest.raises(InputError, match="price must be a finite number above 0, got 0"):
        learn_to_stop(_curves(losses), 0)
    with pytest.raises(InputError, match=r"19 runs have two points, .* a finite first loss"):
        learn_to_stop(_curves(losses[:19]), PRICE)
    with pytest.raises(InputError, match=r"one number for each of 880 points, got shape \[3\]"):
        learn_to_stop(_curves(losses), PRICE, returned=np.zeros(3))
    with pytest.raises(InputError, match=r"returned .*'loss'.*; give one for each of 880 points"):
        learn_to_stop(_curves(losses), PRICE, returned="loss")
    losses[0, 0] = np.inf
    with pytest.warns(DataWarning, match="1 of 22 runs are left out"):
        learn_to_stop(_curves(losses), PRICE)


def test_runs_without_any_budget_are_left_out(learned: LearnedStop) -> None:
    """A column of budgets may say 0 of some; shares of it mean nothing."""

    def spoilt(losses: Floats) -> Curves:
        curves = _curves(np.vstack((losses, _losses(2, 4))))
        return replace(curves, budget=np.repeat([39.0, 0.0], [40, 4]))

    curves = spoilt(_losses(0))
    with pytest.warns(DataWarning, match="4 of 44 runs are left out: .* a budget of 0"):
        found = learn_to_stop(curves, PRICE)
    assert found.model.card == learned.model.card
    with pytest.warns(DataWarning, match="4 of 44 runs are left out"):
        assert judge_stops(learned.model, spoilt(_losses(1))).runs == 40
    with pytest.raises(InputError, match="no run has two points, a budget above 0"):
        learn_to_stop(curves.select(np.arange(40, 44)), PRICE)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_a_stop_returns_is_finite(wrong: float, learned: LearnedStop) -> None:
    curves = _curves(_losses(3, 22))
    returned = np.linspace(1.0, 0.0, 880)
    returned[217] = wrong
    with pytest.raises(InputError, match=rf"must be finite, got \[{wrong}\] at point \[217\]"):
        learn_to_stop(curves, PRICE, returned=returned)
    with pytest.raises(InputError, match="must be finite"):
        judge_stops(learned.model, curves, returned)


def test_what_a_stop_returns_may_be_a_list() -> None:
    returned = np.minimum.accumulate(_losses(3, 22), 1).ravel()
    found = [
        learn_to_stop(_curves(_losses(3, 22)), PRICE, returned=each)
        for each in (returned, returned.tolist())
    ]
    assert found[0].model.card == found[1].model.card


def test_rows_of_training_alone_are_no_places_to_stop(tmp_path: Path) -> None:
    """As in the logs of Lightning and transformers, which begin with some."""
    groups = [f"group {i % 4}" for i in range(40)]
    whole, validations = with_rows_of_training(_losses(0), groups)
    found, expected = (learn_to_stop(each, PRICE).model for each in (whole, validations))
    assert found.digest == expected.digest
    assert found.card.level is not None
    runs, alone = with_rows_of_training(_losses(1), groups)
    assert judge_stops(found, runs) == judge_stops(found, alone)
    with pytest.warns(DataWarning, match="100 % of these runs are among those"):
        judge_stops(found, whole)
    for curve, short in zip(runs, alone, strict=True):
        scores = found.score(curve)
        np.testing.assert_array_equal(scores[curve.is_measured], found.score(short))
        assert np.isposinf(scores[~curve.is_measured]).all()
        for num in (1, 60, 119, 120):
            assert found.last_score(curve.until(num)) == pytest.approx(scores[num - 1])
    write_log(runs[0], tmp_path / "log.csv")
    found.save(tmp_path / "model.safetensors")
    log, stopper = str(tmp_path / "log.csv"), str(tmp_path / "model.safetensors")
    done = CliRunner().invoke(cli, ["watch", log, "--rule", stopper, "--once", "--budget", "40"])
    place = np.flatnonzero(found.score(runs[0]) < found.fixed_level)[0]
    assert f"stop, loss {runs[0].loss[place]:.4g} at {runs[0].cost[place]:g}" in done.output


# --- The model in a file ------------------------------------------------------------------------


def _card(**changed: object) -> StopCard:
    card = StopCard("loss", "epochs", price=PRICE, budget=39.0, level=1.5)
    return replace(card, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["forecast", "constant", "last improvement"])
def test_a_file_holds_the_same_model(kind: str, learned: LearnedStop, tmp_path: Path) -> None:
    model = {
        "forecast": learned.model,
        "constant": StopModel(ForecastRule(PRICE, 0.3), _card(level=None)),
        "last improvement": StopModel(LastImprovementRule(PRICE, 0.5), _card()),
    }[kind]
    model.save(tmp_path / "model.safetensors")
    found = load_curve_rule(tmp_path)
    assert isinstance(found, StopModel)
    assert (found.card, found.digest) == (model.card, model.digest)
    for curve in _curves(_losses(4, 3)):
        np.testing.assert_array_equal(found.score(curve), model.score(curve))
    with pytest.raises(InputError, match="says when to stop runs early, not which to give up"):
        load_curve_model(tmp_path)


def test_what_would_be_judged_wrongly_is_refused() -> None:
    model = StopModel(LastImprovementRule(PRICE), _card())
    with pytest.raises(InputError, match="a price per unit of epochs, but costs are counted in h"):
        RunMonitor(model, cost_unit="hours")
    with pytest.raises(InputError, match="at which it stops runs; leave price and lost out"):
        RunMonitor(model, price=0.1)
    monitor = RunMonitor(model, direction="max", min_points=1)
    with pytest.raises(InputError, match="the best loss is the min, not the max"):
        monitor.update(1.0)


def test_a_run_without_a_budget_has_that_of_the_runs_learned_from(learned: LearnedStop) -> None:
    (curve,) = _curves(_losses(5, 1))
    scores = learned.model.score(curve._replace(budget=39.0))
    np.testing.assert_array_equal(learned.model.score(curve._replace(budget=np.nan)), scores)


def test_the_reason_names_the_gain_and_its_price() -> None:
    monitor = RunMonitor(StopModel(LastImprovementRule(PRICE), _card()), min_points=1)
    for loss in (1.0, 0.9, 0.89):
        monitor.update(loss)
    assert monitor.reason == (
        "the mean of the last gains is 0.01 per unit of epochs, below 0.015, at which it pays to "
        "stop at a price of 0.01"
    )


# --- Judged -------------------------------------------------------------------------------------


def test_it_is_judged_by_what_its_stops_cost() -> None:
    losses = _losses(6)
    curves = _curves(losses)
    model = StopModel(LastImprovementRule(PRICE, 0.5), _card())
    record = judge_stops(model, replace(curves, cost_unit="epochs"))
    worth = np.minimum.accumulate(losses, 1)
    bills = worth + PRICE * np.arange(40)
    stops = _stops(model, curves)
    assert record.ways["model"].j.value == pytest.approx(bills[np.arange(40), stops].mean())
    assert record.ways["model"].returned.value == pytest.approx(worth[np.arange(40), stops].mean())
    assert record.ways["model"].spent.value == pytest.approx(stops.mean() / 39)
    assert record.ways["oracle"].j.value == pytest.approx(bills.min(1).mean())
    assert record.ways["to the end"].j.value == pytest.approx(bills[:, -1].mean())
    assert record.ways["best equal share"].j.value == pytest.approx(bills.mean(0).min())
    for share, j in record.by_share:  # at the first point where so much has been spent
        assert j == pytest.approx(bills[:, int(np.ceil(share * 39 - 1e-9))].mean())
    assert record.stopped == (stops < 39).mean()
    gained = bills[:, -1] - bills[np.arange(40), stops]
    assert record.by_group["group 1"] == pytest.approx(gained[1::4].mean())
    with pytest.raises(InputError, match="costs are counted in step"):
        judge_stops(model, curves)
    losses[0, 0] = np.inf
    with pytest.warns(DataWarning, match="1 of 40 runs are left out"):
        rest = judge_stops(model, replace(_curves(losses), cost_unit="epochs"))
    assert rest.ways["to the end"].j.value == pytest.approx(bills[1:, -1].mean())


def test_no_interval_of_a_share_leaves_what_shares_can_be() -> None:
    losses = np.exp(-np.repeat([0.02, 0.02, 4.0], 8)[:, None] * np.arange(40))
    groups = [f"group {i // 8}" for i in range(24)]
    curves = Curves.from_matrix(losses, group=groups, cost_unit="epochs")
    record = judge_stops(StopModel(LastImprovementRule(PRICE, 0.5), _card()), curves)
    found = record.ways["oracle"].spent  # that spends all in two of three groups
    assert (found.low, found.high) == (0.0, 1.0)
    assert all(0 <= way.spent.low <= way.spent.high <= 1 for way in record.ways.values())


def test_the_best_equal_share_of_long_runs_is_the_best_step_there_is() -> None:
    """It ends them where a fortieth of the budget is still far off."""
    generator = np.random.default_rng(0)
    speeds = generator.uniform(0.2, 0.6, (30, 1))
    losses = np.exp(-speeds * np.arange(900)) + 0.001 * generator.standard_normal((30, 900))
    curves = replace(_curves(losses), cost_unit="epochs")
    record = judge_stops(StopModel(LastImprovementRule(PRICE, 0.5), _card()), curves)
    bills = np.minimum.accumulate(losses, 1) + PRICE * np.arange(900)
    assert 0 < bills.mean(0).argmin() < 20
    assert record.ways["best equal share"].j.value == pytest.approx(bills.mean(0).min())


def test_the_card_says_what_its_own_runs_say(learned: LearnedStop) -> None:
    assert judge_learned_stop(learned).saved.value == pytest.approx(learned.model.card.saved)


def test_the_metric_that_is_told_is_the_one_that_was_judged() -> None:
    card = StopCard("loss", "steps", price=0.01, budget=50.0, level=1.0)
    model = StopModel(LastImprovementRule(0.01, 0.5), card)
    runs = [{"loss": 0.9 ** np.arange(20), "test": 0.8 ** np.arange(20)}] * 3
    assert judge_stops(model, Curves.from_runs(runs, metric="test")).metric == "test"
