"""Stopping by the log alone: against brute force, and against the record of curves."""

import copy
import json
import math
import tracemalloc
import warnings
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_rules import Patience, exponential_runs, patience, small_model, stop_of

from haltwise import DataWarning, InputError, RunMonitor
from haltwise.curves.columns import direction_of
from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.model import CurveModel
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.last_improvement import LastImprovementRule
from haltwise.curves.rules.patience import PatienceRule
from haltwise.curves.stop_model import StopCard, StopModel
from haltwise.interfaces.levelled_rule import LevelledRule

values = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)


@given(values, st.integers(1, 8), st.integers(1, 12), st.sampled_from(["min", "max"]))
def test_it_stops_at_the_first_point_below_the_level(
    found: list[float], num: int, min_points: int, direction: str
) -> None:
    monitor = patience(num, direction=direction, min_points=min_points)
    for step, value in enumerate(found, 1):
        monitor.update(value)
        stops = stop_of(found[:step], num, min_points, direction) < step
        assert monitor.should_stop >= stops
        if monitor.should_stop:
            break
    assert monitor.steps == stop_of(found, num, min_points, direction)
    assert (monitor.reason is None) != monitor.should_stop


def test_a_whole_curve_may_be_given_up_at_its_first_point() -> None:
    curve = Curve(np.arange(2.0), {"loss": np.ones(2)}, "loss", "min")
    assert LevelledRule(Patience(), level=0.5, min_points=1).gives_up(curve) == 0


@given(values, st.floats(0.5, 3), st.sampled_from(["min", "max"]))
def test_a_price_ends_a_steady_fall_at_the_first_gain_below_it(
    found: list[float], price: float, direction: str
) -> None:
    sign = 1 if direction == "max" else -1
    falls = sorted((abs(fall) for fall in found if fall), reverse=True)
    measured = [10.0, *(10 + sign * np.cumsum(falls))]
    monitor = RunMonitor(price=price, direction=cast("Any", direction), min_points=2)
    for value in measured:
        monitor.update(value)
        if monitor.should_stop:
            break
    below = [number for number, fall in enumerate(falls, 2) if fall < price]
    assert monitor.steps == (below[0] if below else len(measured))


@pytest.mark.parametrize("price", [0, -0.1, math.nan, math.inf, "a", True])
def test_a_price_that_is_none_is_refused(price: Any) -> None:
    with pytest.raises(InputError, match=r"price must be a (finite number above 0|single real)"):
        RunMonitor(price=price)


def test_noise_ends_no_loop_that_goes_on_gaining() -> None:
    """The point of largest gain less price is at 92 steps; noise of 20 prices is all over it."""
    rng = np.random.default_rng(4)
    clean = 2 * np.exp(-0.05 * np.arange(400)) + 0.5
    bills = clean + 1e-3 * np.arange(400)
    for _ in range(20):
        monitor = RunMonitor(price=1e-3)
        for value in clean + rng.normal(0, 0.02, 400):
            monitor.update(value)
            if monitor.should_stop:
                break
        assert bills[monitor.steps - 1] < bills.min() + 0.1  # 1.2 where the first rise ends it
        assert "the best of the last 20 points gained" in str(monitor.reason)


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_best_of_a_search_is_not_ended_at_its_first_pause(direction: Any) -> None:
    """The lowest of t uniform numbers is 1 / (t + 1) on average, so 30 tries cost least."""
    price, sign = 1e-3, 1 if direction == "min" else -1
    tries = np.arange(1, 101)
    best, end = (1 / (tries + 1) + price * tries)[[29, -1]]
    rng, bills = np.random.default_rng(0), []
    for _ in range(200):
        monitor = RunMonitor(price=price, direction=direction)
        for value in np.minimum.accumulate(rng.random(100)):
            monitor.update(sign * value)
            if monitor.should_stop:
                break
        bills.append(value + price * monitor.steps)
    assert best < np.mean(bills) < end  # above end where two equal values end it


def test_a_loss_that_stands_still_ends_a_loop_after_a_window() -> None:
    monitor = RunMonitor(price=1e-3)
    for value in (9.0, 4.0, *[2.0] * 30):
        monitor.update(value)
        if monitor.should_stop:
            break
    assert monitor.steps == 23
    assert (monitor.reason or "").startswith("the best of the last 20 points gained 0 per")


def test_a_run_that_comes_back_from_nan_goes_on() -> None:
    monitor = RunMonitor(price=0.1)
    for value in (1, math.nan, 0.5, 0.4, math.inf, 0.3):
        monitor.update(value)
    assert not monitor.should_stop
    for _ in range(20):
        monitor.update(math.nan)
    assert monitor.should_stop


@pytest.mark.parametrize("num_nan", [5, 6, 60])
def test_a_run_that_has_diverged_from_its_start_is_given_up_after_a_tenth(num_nan: int) -> None:
    monitor = RunMonitor("training-runs", target=0.5, budget=60, lost=0.05)
    for point in range(1, 61):
        monitor.update(math.nan if point <= num_nan else 5 * 0.9**point, cost=point)
        assert monitor.should_stop == (point >= 6 and num_nan >= 6)
    assert (monitor.reason or "").startswith("its chance to reach 0.5 is forecast to be 0,") == (
        num_nan >= 6
    )


def test_a_level_that_ends_every_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"level of 5\.0 would end .* PatienceRule are at most 0"):
        RunMonitor(PatienceRule(), level=5)
    RunMonitor(PatienceRule(), level=-5)


def test_once_stopped_it_stays_so() -> None:
    monitor = patience(2)
    for value in (1.0, 1.0, 1.0):
        monitor.update(value)
    reason = monitor.reason
    assert reason == "nothing was better for 2 points"
    for value in (0.5, 0.4, 0.4, 0.4, 0.4):
        monitor.update(value)
        assert monitor.should_stop
    assert (monitor.reason, monitor.steps) == (reason, 8)
    monitor.start()
    assert (monitor.should_stop, monitor.steps, monitor.curve.num_points) == (False, 0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 3)), min_size=1, max_size=30),
    st.sampled_from(["min", "max"]),
)
def test_time_that_goes_back_is_a_resumed_run(
    points: list[tuple[int, int]], direction: Any
) -> None:
    monitor = RunMonitor(Patience(), direction=direction, level=-math.inf, target=-2)
    metric = monitor.curve.metric
    aside = [value / 2 if value % 2 else math.nan for _, value in points]
    with warnings.catch_warnings(action="ignore"):  # that it goes back often
        for (cost, value), half in zip(points, aside, strict=True):
            monitor.update(value, cost=cost, half=half)
    columns: dict[str, Any] = {
        "cost": [c for c, _ in points],
        metric: [v for _, v in points],
        "half": aside,
    }
    with warnings.catch_warnings(action="ignore"):  # of what was replaced
        expected = Curves.from_runs([columns], metric=metric, direction=direction, target=-2)[0]
    assert monitor.curve.cost.tolist() == expected.cost.tolist()
    for name in (metric, "half"):
        np.testing.assert_array_equal(monitor.curve.columns[name], expected.columns[name])
    assert monitor.succeeded == (expected.success >= 0)
    assert monitor.steps == len(points)


@given(values, st.integers(0, 39), st.integers(1, 8))
def test_a_state_goes_on_exactly(found: list[float], cut: int, num: int) -> None:
    found = [math.nan if value == 5 else value for value in found]
    costs = [index if index != 7 else 2 for index in range(len(found))]
    whole, first = patience(num, target=-4.5), patience(num, target=-4.5)
    whole.start(budget=50)
    first.start(budget=50)
    second = patience(num, target=-4.5)
    for index, (value, cost) in enumerate(zip(found, costs, strict=True)):
        if index == cut:
            text = json.dumps(first.state_dict(), allow_nan=False)
            second.load_state_dict(json.loads(text))
            first = second
        whole.update(value, cost=cost, other=-value)
        first.update(value, cost=cost, other=-value)
    assert str(first.state_dict()) == str(whole.state_dict())
    assert first.curve.budget == whole.curve.budget == 50
    assert str(first.curve) == str(whole.curve)


@pytest.mark.parametrize(
    "number",
    [
        2,
        2.0,
        np.float32(2),
        np.int64(2),
        np.array(2.0),
        np.array([2.0]),
        np.array([[2]]),
        torch.tensor(2.0, requires_grad=True),
        torch.tensor([2], dtype=torch.int8),
        torch.tensor(2.0, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_it_takes_numbers_of_any_make(number: Any) -> None:
    monitor = RunMonitor(Patience(), level=-1, target=number, budget=number)
    monitor.update(number, cost=number, more=number)
    curve = monitor.curve
    assert [curve.target, curve.budget, *curve.cost, *curve.loss, *curve.columns["more"]] == [2] * 5
    assert json.dumps(monitor.state_dict())


@pytest.mark.parametrize(("direction", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_nan_is_the_worst_value(direction: Any, worst: float) -> None:
    monitor = patience(3, direction=direction)
    for value in (0.0, math.nan, worst):
        assert not monitor.should_stop
        monitor.update(value, aside=math.nan)
    with pytest.warns(DataWarning, match="better than any number; it counts as .* logarithm of 0"):
        monitor.update(-worst, aside=math.nan)
    assert monitor.should_stop
    assert monitor.curve.loss.tolist() == [0, math.inf, math.inf, math.inf]
    assert np.isnan(monitor.curve.columns["aside"]).all()


class Keeps(CurveRule):
    """Keeps all curves that it is shown, which no rule should need to."""

    def __init__(self) -> None:
        self.shown: list[Curve] = []

    def score(self, curve: Curve) -> Floats:
        self.shown.append(curve)
        return np.ones(curve.num_points)


def test_what_a_rule_was_shown_stays_as_it_was() -> None:
    rule, costs = Keeps(), [0.0, 1.0, 2.0, 1.5, 2.5, 0.5]
    monitor = RunMonitor(rule, level=0.0, min_points=1)
    expected = []
    for place, cost in enumerate(costs):
        monitor.update(10.0 - place, cost=cost)
        expected.append(monitor.curve)
        monitor.curve.cost[:] = -1  # a copy
    for shown, known in zip(rule.shown, expected, strict=True):
        np.testing.assert_array_equal(shown.cost, known.cost)
        np.testing.assert_array_equal(shown.columns["loss"], known.columns["loss"])
        with pytest.raises(ValueError, match="read-only"):
            shown.cost[:] = 0
    assert monitor.curve.cost.tolist() == [0.0, 0.5]


def test_a_late_update_copies_nothing_of_a_long_run() -> None:
    monitor, num = RunMonitor(price=1e-9), 100_000
    state = monitor.state_dict()
    past = {"cost": [*range(num)], "columns": {"loss": [2.0 - n / num for n in range(num)]}}
    monitor.load_state_dict({**state, **past, "counted": True, "steps": num})
    monitor.update(0.9)
    tracemalloc.start()
    monitor.update(0.8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not monitor.should_stop
    assert peak < num


def test_costs_count_from_zero() -> None:
    monitor = patience(3)
    for value in (3, 2, 1):
        monitor.update(value)
    assert monitor.curve.cost.tolist() == [0, 1, 2]


def test_columns_may_come_and_go() -> None:
    monitor = patience(9, metric="val")
    monitor.update(3)
    monitor.update(2, train=1)
    monitor.update(1, train=2, norm=4)
    monitor.update(0)
    columns = {name: str(values.tolist()) for name, values in monitor.curve.columns.items()}
    assert columns == {
        "val": "[3.0, 2.0, 1.0, 0.0]",
        "train": "[nan, 1.0, 2.0, nan]",
        "norm": "[nan, nan, 4.0, nan]",
    }


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_a_run_that_succeeds_is_not_given_up(direction: Any, sign: int) -> None:
    monitor = patience(2, direction=direction, target=sign * 1.0)
    for value in (3, 2, 1, 1, 1, 1):
        assert not monitor.succeeded or value == 1
        monitor.update(sign * value)
        assert not monitor.should_stop
    assert monitor.succeeded


@pytest.fixture(scope="module")
def learned() -> CurveModel:
    return small_model()


@pytest.mark.parametrize(
    "settings",
    [{}, {"lost": 0.05}, {"price": 0.01}, {"level": 0.01}, {"lost": 0.05, "cost_unit": "steps"}],
    ids=str,
)
def test_a_learned_rule_stops_where_its_card_says(
    learned: CurveModel, settings: dict[str, Any]
) -> None:
    """As the model is judged, run for run, on runs of another seed and of twice the budget."""
    found = set()
    curves = exponential_runs(30, 1)
    asked = {"lost": 0.01} if not settings else {k: v for k, v in settings.items() if k != "level"}
    if asked.pop("cost_unit", None) is None and "lost" in asked:
        asked["scale"] = 58.0
    level = settings["level"] if "level" in settings else learned.level(**asked)
    for curve in curves:
        monitor = RunMonitor(learned, target=1.0, **settings)
        monitor.start(budget=58)
        for value in curve.columns["loss"]:
            monitor.update(value)
            if monitor.should_stop:
                break
        end = curve.success if curve.success >= 0 else 30
        low = learned.score(curve._replace(budget=58.0))[2:end] < level
        expected = 3 + int(low.argmax()) if low.any() else 30
        assert monitor.steps == expected
        assert monitor.reason is None or monitor.reason.startswith("its chance to reach 1 is")
        found.add(expected)
    assert min(found) < 30


def test_a_learned_rule_needs_a_target_and_a_budget(learned: CurveModel) -> None:
    with pytest.raises(InputError, match="will meet its target, but there is none; give a target"):
        RunMonitor(learned, budget=3)
    monitor = RunMonitor(learned, target=1)
    with pytest.raises(
        InputError, match="in its budget, but there is no finite one; give a budget"
    ):
        monitor.update(1)
    assert monitor.steps == 0
    with pytest.raises(InputError, match=r"no level for a share of 0.3 of the successes, but for"):
        RunMonitor(learned, target=1, lost=0.3)


@pytest.mark.parametrize("costs", [[1.7e9, 1.7e9 + 1, 1.7e9 + 2], [0, 60, 120]], ids=str)
def test_a_cost_of_another_unit_than_the_budget_is_told_once(
    learned: CurveModel, costs: list[float]
) -> None:
    monitor = RunMonitor(learned, target=1, budget=90)
    with warnings.catch_warnings(record=True, action="always") as told:
        for cost in costs:
            monitor.update(2, cost=cost)
    assert [each.category for each in told] == [DataWarning]
    assert "is beyond a budget of 90, " in str(told[0].message)
    monitor.start()
    for cost in (30, 60, 90, 120):  # a run that is longer than it was to be is another matter
        monitor.update(2, cost=cost)


@pytest.mark.parametrize("costs", [[0.5] * 30, [0.9, 0.5, 0.7, 0.4] * 8], ids=["same", "varying"])
def test_costs_of_single_rounds_are_told_once(costs: list[float]) -> None:
    """They would be one point or few, and the run would never be given up."""
    monitor = patience(3)
    with warnings.catch_warnings(record=True, action="always") as told:
        for cost in costs:
            monitor.update(1.0, cost=cost)
    assert [each.category for each in told] == [DataWarning]
    assert "what was spent since the run began, in all" in str(told[0].message)
    monitor.start()
    for cost in np.repeat(np.cumsum(costs), 2):  # in two goes
        monitor.update(1.0, cost=cost)
    monitor.start()
    for cost in (*range(8), *range(3, 30)):  # resumed
        monitor.update(1.0, cost=cost)
    assert monitor.should_stop


def test_a_stop_model_knows_the_budget_of_its_runs() -> None:
    card = StopCard("loss", "minutes", price=0.01, budget=50.0, level=0.4)
    monitor = RunMonitor(StopModel(LastImprovementRule(0.01), card))
    monitor.update(2, cost=0)
    with pytest.warns(DataWarning, match="cost of 60 at point 2 of a run is beyond a budget of 50"):
        monitor.update(1, cost=60)


def test_a_missing_budget_is_refused_before_the_first_round(learned: CurveModel) -> None:
    """At the construction it cannot be known: callbacks tell the budget by `start`."""
    monitor = RunMonitor(learned, target=1)
    with pytest.raises(InputError, match="give a budget"):
        _ = monitor.should_stop  # before the first round, in `while not monitor.should_stop`
    with pytest.raises(InputError, match="give a budget"):
        monitor.start()  # as hosts do that know none
    monitor.start(budget=3)
    assert not monitor.should_stop
    monitor = RunMonitor(learned, target=1, budget=3)
    monitor.start()
    assert not monitor.should_stop


@pytest.mark.parametrize("number", [0.01, 1, np.float64(0.01), np.float32(0.5), torch.tensor(0.1)])
def test_a_number_for_a_rule_is_told_to_be_a_price(number: Any) -> None:
    with pytest.raises(InputError, match=r"no rule on curves; .*RunMonitor\(price=[01]"):
        RunMonitor(number)


class Wrong(CurveRule):
    def score(self, curve: Curve) -> Floats:
        return np.zeros(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunMonitor("no such", level=0), "no such"),
        (lambda: RunMonitor(3, level=0), "3 is no rule on curves"),  # type: ignore[arg-type]
        (lambda: RunMonitor(Wrong()), "Wrong is not a learned model, .* give the level"),
        (lambda: RunMonitor(Patience(), lost=0.02), "Patience is not a learned model"),
        (lambda: RunMonitor(Patience(), lost=0.05, level=1), "a level or successes lost, not both"),
        (lambda: RunMonitor(Patience(), level=math.nan), "the level is NaN"),
        (lambda: patience(1, direction="down"), "direction must be 'min' or 'max', got 'down'"),
        (lambda: patience(1, target="a"), "the target must be a single real number, got 'a'"),
        (lambda: patience(1, budget=0), "the budget must be above 0, got 0"),
        (lambda: patience(1, min_points=0), "min_points must be at least 1, got 0"),
        (
            lambda: patience(1).update(cast("Any", [1])),
            r"the value must be a single real number, got \[1\]",
        ),
        (lambda: patience(1).update(np.ones(2)), r"single real number, got shape \[2\]"),
        (lambda: patience(1).update(1, cost=-1), "cost must be a finite number .*, got -1"),
        (lambda: patience(1).update(1, cost=math.nan), "finite number of at least 0, got nan"),
        (
            lambda: patience(1).update(1, a=cast("Any", "b")),
            "a must be a single real number, got 'b'",
        ),
        (lambda: patience(1).update(1, loss=1), "'loss' is the metric, which is given first"),
    ],
)
def test_it_refuses_what_makes_no_sense(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_costs_are_given_always_or_never() -> None:
    for first, second in (({}, {"cost": 1}), ({"cost": 0}, {})):
        monitor = patience(1)
        monitor.update(1, **first)
        with pytest.raises(InputError, match="some updates of this run gave a cost"):
            monitor.update(1, **second)
        assert (monitor.steps, monitor.curve.num_points) == (1, 1)  # nothing is half done


def test_a_rule_that_scores_too_few_points_is_named() -> None:
    monitor = RunMonitor(Wrong(), level=0)
    monitor.update(1)
    monitor.update(1)
    with pytest.raises(InputError, match=r"scores of Wrong have shape \[1\] on a curve of 3"):
        monitor.update(1)


@pytest.mark.parametrize(
    "change",
    [
        {"cost": [0]},
        {"cost": "x"},
        {"cost": None},
        {"columns": {}},
        {"columns": {"loss": [1.0, "x"]}},
        {"columns": {"loss": [1.0]}},
        {"columns": {"other": [1.0, 2.0]}},
        {"steps": "2"},
        {"steps": -1},
        {"reason": 3},
        {"counted": 2},
        {"budget": None},
        {"settings": None},
        {"more": 1},
    ],
    ids=str,
)
def test_it_loads_no_foreign_state(change: dict[str, Any]) -> None:
    monitor = patience(3)
    monitor.update(2)
    monitor.update(1)
    state = monitor.state_dict()
    before = str(state)
    for wrong in ({**state, **change}, {k: v for k, v in state.items() if k not in change}):
        if wrong != state:
            with pytest.raises(InputError, match="no state of a RunMonitor"):
                monitor.load_state_dict(wrong)
    assert str(monitor.state_dict()) == before


def test_it_loads_no_state_of_another_monitor() -> None:
    state = patience(3, budget=5).state_dict()
    for other, difference in (
        (patience(4, budget=5), r"another level \(-2.5\)"),
        (patience(3, budget=6), r"another budget \(5.0\)"),
        (patience(3, budget=5, target=1, direction="max"), "another direction .* another target"),
        (patience(3, budget=5, metric="x"), r"another metric \(loss\)"),
        (patience(3, budget=5, min_points=9), r"another min_points \(3\)"),
    ):
        with pytest.raises(InputError, match=difference):
            other.load_state_dict(state)
        assert other.identity != patience(3, budget=5).identity
    patience(3, budget=5).load_state_dict(state)
    with pytest.raises(InputError, match=r"another rule \(WindowedImprovementRule\(price=0\.1, w"):
        RunMonitor(price=0.2).load_state_dict(RunMonitor(price=0.1).state_dict())


def test_the_metric_is_called_a_loss_only_where_lower_is_better() -> None:
    assert "on loss (min)" in repr(patience(3))
    monitor = patience(3, direction="max")
    assert "on metric (max)" in repr(monitor)
    monitor.update(0.5, loss=1.5)  # the training loss beside an accuracy
    assert monitor.curve.columns["loss"].tolist() == [1.5]
    assert "on reward (max)" in repr(patience(3, direction="max", metric="reward"))


@pytest.mark.parametrize(("metric", "direction"), [("val_accuracy", "min"), ("val_loss", "max")])
def test_a_name_that_tells_another_direction_is_warned_of(metric: str, direction: Any) -> None:
    with pytest.warns(DataWarning, match=f"er values of a metric called '{metric}' are better"):
        patience(3, metric=metric, direction=direction)
    patience(3, metric="score", direction=direction)  # warnings are errors


@pytest.mark.parametrize("metric", [None, "score"])
def test_a_first_value_that_meets_the_target_is_warned_of(metric: str | None) -> None:
    """Of an accuracy whose direction was forgotten each value is below its target."""
    with pytest.warns(DataWarning, match=r"0\.02, meets the target of 0\.76 .*direction=\"max\""):
        RunMonitor("training-runs", metric=metric, target=0.76, budget=18).update(0.02, cost=0)
    RunMonitor("training-runs", metric="val_loss", target=0.76, budget=18).update(0.02, cost=0)


def test_a_run_that_did_nothing_but_rise_is_told_of_the_direction() -> None:
    def reason(values: list[float], **settings: Any) -> str:
        monitor = RunMonitor(price=0.01, **settings)
        for value in values:
            monitor.update(value)
        return str(monitor.reason)

    rise: list[float] = [*range(30)]
    hint = 'no value was below the first, so if higher is better make the monitor with direction="'
    assert hint in reason(rise)
    assert hint in reason(rise, metric="coverage")
    assert hint not in reason(rise, metric="val_loss")
    assert hint not in reason([*rise, *[29.0] * 5], direction="max")
    assert hint not in reason([1.0] * 9)
    assert hint not in reason([1.0, *[math.nan] * 29])
    assert hint not in reason([0.5, 0.4, *rise])


@pytest.mark.parametrize("budget", [math.inf, math.nan])
def test_a_learned_rule_refuses_an_endless_budget(learned: CurveModel, budget: float) -> None:
    with pytest.raises(InputError, match="there is no finite one; give a budget"):
        RunMonitor(learned, target=1, budget=budget).update(1.0)


def test_a_copy_goes_its_own_way() -> None:
    monitor = patience(3)
    monitor.update(3.0)
    other = copy.copy(monitor)
    for value in (2.0, 1.0):
        other.update(value, half=0.5)
    assert (monitor.steps, monitor.curve.loss.tolist()) == (1, [3])
    assert (other.steps, other.curve.loss.tolist()) == (3, [3, 2, 1])
    assert monitor.curve.columns.keys() == {"loss"}


def test_a_run_that_goes_on_has_the_budget_of_the_loop() -> None:
    monitor = RunMonitor(small_model(), target=-1, lost=0.05)
    monitor.start(budget=10)
    for step in range(1, 5):
        monitor.update(9.0, cost=step)
    assert monitor.should_stop
    for told in ({}, {"budget": 10}):
        monitor.resume(**told)
        assert (monitor.should_stop, monitor.steps, monitor.curve.budget) == (True, 4, 10)
    monitor.resume(budget=1e9)  # for which the chances will do
    assert (monitor.should_stop, monitor.steps, monitor.curve.budget) == (False, 4, 1e9)
    monitor.update(9.0, cost=5)
    assert (monitor.should_stop, monitor.steps) == (False, 5)
    monitor.resume(budget=10)
    monitor.update(9.0, cost=6)
    assert (monitor.should_stop, monitor.steps) == (True, 6)
    own = RunMonitor(small_model(), target=-1, budget=7)
    own.resume(budget=100)
    assert own.curve.budget == 7
    with pytest.raises(InputError, match="there is no finite one; give a budget"):
        RunMonitor(small_model(), target=-1).resume()


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("neg_mean_squared_error", "max"),
        ("val_neg_log_loss", "max"),
        ("valid-merror", "min"),
        ("test-rmsle", "min"),
        ("valid-poisson-nloglik", "min"),
        ("d2_log_loss_score", None),
    ],
)
def test_names_of_metrics_tell_their_direction(name: str, direction: Any) -> None:
    assert direction_of(name) == direction
