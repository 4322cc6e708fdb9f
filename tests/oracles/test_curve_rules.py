"""Every rule on curves: its definition in one line, and no look at the future."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltwise._core.errors import InputError
from haltwise.curves.curves import Curve, Curves
from haltwise.curves.progress import best_so_far, relative
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules import curve_rules
from haltwise.curves.rules.best_so_far import BestSoFarRule
from haltwise.curves.rules.boosted_trees import BoostedTreesRule
from haltwise.curves.rules.exponential import ExponentialRule
from haltwise.curves.rules.extrapolation import fit_prefixes
from haltwise.curves.rules.fixed_budget import BudgetRule
from haltwise.curves.rules.gradient_norm import GradientNormRule
from haltwise.curves.rules.halving import HalvingRule
from haltwise.curves.rules.last_improvement import LastImprovementRule, UntunedImprovementRule
from haltwise.curves.rules.learners import training_points, with_inputs, worth_features
from haltwise.curves.rules.logistic import LogisticCurveRule
from haltwise.curves.rules.patience import PatienceRule
from haltwise.curves.rules.peers import PEER_SHARES, PeersRule
from haltwise.curves.rules.plateau import PlateauRule
from haltwise.curves.rules.power_law import PowerLawRule
from haltwise.curves.rules.value_trees import ValueTreesRule, bill, cost_to_go
from haltwise.curves.rules.windowed_improvement import WindowedImprovementRule


def curve(
    loss: list[float],
    cost: list[float] | None = None,
    target: float = np.nan,
    budget: float | None = None,
) -> Curve:
    spent = np.arange(len(loss), dtype=float) if cost is None else np.array(cost)
    most = float(spent[-1]) if budget is None else budget
    return Curve(spent, {"loss": np.array(loss)}, "loss", "min", target, most)


FALLING = [5.0, 4.0, 4.2, 3.0, 3.1, 3.05, 2.99, 2.99, 2.5]


def population(num: int = 24, points: int = 12, seed: int = 0) -> Curves:
    """Runs that fall at different rates to different limits; the faster ones meet the target."""
    generator = np.random.default_rng(seed)
    rates = generator.uniform(0.05, 0.8, num)
    losses = np.exp(-rates[:, None] * np.arange(points)) + generator.normal(0, 0.01, (num, points))
    return Curves.from_matrix(losses, target=0.2, group=[f"g{i % 4}" for i in range(num)])


def test_fixed_budget_is_the_share_spent() -> None:
    score = BudgetRule().score(curve(FALLING, budget=16.0))
    np.testing.assert_allclose(score, -np.arange(9) / 16)


@pytest.mark.parametrize("wait", ["points", "budget"])
def test_patience_counts_from_the_last_improvement(wait: str) -> None:
    rule = PatienceRule(wait)  # type: ignore[arg-type]
    unit = 1 if wait == "points" else 8
    last = [max(s for s in range(t + 1) if FALLING[s] < min(FALLING[:s], default=np.inf))
            for t in range(9)]  # fmt: skip
    expected = [(s - t) / unit for t, s in enumerate(last)]
    np.testing.assert_allclose(rule.score(curve(FALLING)), expected)


def test_patience_tolerates_small_improvements() -> None:
    # From 3 to 2.99 is less than a hundredth of the 2 gained since the start.
    score = PatienceRule(tolerance=0.01).score(curve(FALLING))
    assert score.tolist() == [0, 0, -1, 0, -1, -2, -3, -4, 0]


@given(
    st.lists(st.sampled_from([*FALLING, np.nan, np.inf, -np.inf]), max_size=12),
    st.sampled_from([0.0, 0.01, 0.3]),
)
def test_patience_goes_from_point_to_point(loss: list[float], tolerance: float) -> None:
    best, start, last, expected = np.inf, np.nan, 0, []
    for point, value in enumerate(loss):
        start = value if np.isnan(start) and np.isfinite(value) else start
        gained = max(start - best, 0.0) if np.isfinite(best) else 0.0
        if value < best - tolerance * gained:
            best, last = value, point
        expected.append(last - point)
    assert PatienceRule(tolerance=tolerance).score(curve(loss, budget=9.0)).tolist() == expected


def test_plateau_is_the_share_gained_in_the_last_part() -> None:
    cost = [0.0, 1.0, 2.0, 4.0, 5.0, 6.5, 8.0, 9.0, 10.0]
    score = PlateauRule(0.4).score(curve(FALLING, cost))
    for t in range(1, 9):
        then = max(s for s in range(9) if cost[s] <= 0.6 * cost[t])
        best = [min(FALLING[: s + 1]) for s in range(9)]
        assert score[t] == pytest.approx((best[then] - best[t]) / (5.0 - best[t]))


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_last_improvement_is_a_mean_in_prices(memory: float) -> None:
    cost = [0.0, 1.0, 3.0, 4.0]
    loss = [4.0, 3.0, 2.0, 2.5]
    rates = [1.0 / 0.1, 0.5 / 0.1, -0.5 / 0.1]
    expected = [rates[0]]
    for rate in rates[1:]:
        expected.append(memory * expected[-1] + (1 - memory) * rate)
    score = LastImprovementRule(0.1, memory).score(curve(loss, cost))
    assert score[0] == np.inf
    np.testing.assert_allclose(score[1:], expected)


def test_the_untuned_rule_stops_where_an_improvement_does_not_pay() -> None:
    rule = UntunedImprovementRule(0.5)
    assert rule.fixed_level == 1.0
    score = rule.score(curve([4.0, 3.0, 2.6, 2.5]))
    np.testing.assert_allclose(score[1:], [2.0, 0.8, 0.2])
    assert UntunedImprovementRule.candidates(None) == []


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0, np.inf, -1.0, -4.0]), max_size=14),
    st.sampled_from([1, 2, 3, 20]),
)
def test_a_window_of_improvements_counts_where_the_last_tells_little(
    rises: list[float], window: int
) -> None:
    """By definition: steady is what always falls, and never by more than before, of late."""
    loss = [9.0]
    for rise in rises:
        loss.append(rise if rise == np.inf else (loss[-1] if loss[-1] < np.inf else 5.0) + rise)
    cost = np.cumsum([0.0, *(1.0 + number % 2 for number in range(len(rises)))])
    score = WindowedImprovementRule(0.5, window).score(curve(loss, cost.tolist()))
    for t in range(len(loss)):
        steady = all(
            np.inf > _rate(loss, cost, j) > 0
            and (j == 1 or _rate(loss, cost, j) <= _rate(loss, cost, j - 1) + 1e-9)
            for j in range(max(1, t - 4), t + 1)
        )
        back = 1 if steady else window
        if t < back:
            assert score[t] == np.inf
            continue
        gained = min(loss[: t - back + 1]) - min(loss[: t + 1])
        assert score[t] == pytest.approx(gained / (cost[t] - cost[t - back]) / 0.5)


def _rate(loss: list[float], cost: Any, j: int) -> float:
    with np.errstate(invalid="ignore"):
        return float((np.float64(loss[j - 1]) - loss[j]) / (cost[j] - cost[j - 1]))


@pytest.mark.parametrize("name", list(curve_rules()))
def test_no_score_exceeds_the_highest(name: str) -> None:
    runs = population()
    for price in (None, 0.01):
        for rule in curve_rules()[name].candidates(price):
            for score in rule.fit(runs).scores(runs):
                assert (score[np.isfinite(score)] <= rule.highest_score).all()


def test_gradient_norm_is_a_logarithm_or_says_nothing() -> None:
    known = curve([3.0, 2.0, 1.0])
    with_norm = known._replace(columns={**known.columns, "grad_norm": np.array([np.nan, 4, 1.0])})
    assert GradientNormRule().score(known).tolist() == [np.inf] * 3
    np.testing.assert_allclose(
        GradientNormRule().score(with_norm), [np.inf, np.log(4), 0], atol=1e-12
    )
    np.testing.assert_allclose(
        GradientNormRule(True).score(with_norm), [np.inf, 0, -np.log(4)], atol=1e-12
    )


def test_best_so_far_is_ahead_of_a_line() -> None:
    score = BestSoFarRule(1.0).score(curve([3.0, 2.5, 2.0], target=1.0))
    np.testing.assert_allclose(score, [0.0, 0.5 - 0.75, 0.0 - 0.5], atol=1e-12)


def test_relative_measures_the_way_that_is_left() -> None:
    run = curve([3.0, np.nan, 2.0, 1.0, np.inf], target=1.0)
    np.testing.assert_allclose(relative(run), [1.0, 3.0, 0.5, 0.0, 3.0])
    np.testing.assert_allclose(relative(curve([4.0, 3.0])), [1.0, 0.75])
    upwards = Curve(np.arange(2.0), {"a": np.array([0.2, 0.6])}, "a", "max", 1.0, 1.0)
    np.testing.assert_allclose(relative(upwards), [1.0, 0.5])


@pytest.mark.parametrize("tail", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["power", "exponential"])
def test_extrapolations_are_least_squares(kind: str, tail: float) -> None:
    generator = np.random.default_rng(1)
    time = np.linspace(0, 0.5, 13)
    loss = 1 + 2 * np.exp(-5 * time) + generator.normal(0, 0.01, 13)
    shapes: Any = (
        [lambda t, c=c: (t + 0.01) ** -c for c in (0.25, 0.5, 1.0, 2.0)]
        if kind == "power"
        else [lambda t, k=k: np.exp(-k * t) for k in (1.0, 3.0, 10.0, 30.0, 100.0)]
    )
    rule = (PowerLawRule if kind == "power" else ExponentialRule)(None, tail)
    run = curve(loss.tolist(), time.tolist(), target=0.5, budget=1.0)
    z = relative(run)
    score = rule.score(run)
    assert np.isposinf(score[:2]).all()
    for n in (5, 9, 13):
        window = slice(n - max(int(np.ceil(tail * n)), 3), n)
        fits = []
        for phi in shapes:
            table = np.stack((np.ones(n), phi(time[:n])), 1)[window]
            (a, b), *_ = np.linalg.lstsq(table, z[:n][window], rcond=None)
            error = ((table @ [a, b] - z[:n][window]) ** 2).sum()
            fits.append((error, a + b * phi(1.0)) if b > 0 else (np.inf, np.nan))
        flat = z[:n][window].mean()
        flat_fit = (((z[:n][window] - flat) ** 2).sum(), flat)
        assert score[n - 1] == pytest.approx(-min(min([flat_fit, *fits])[1], z[:n].min()), abs=1e-6)


@pytest.mark.parametrize("budget", [1.0, 20.0])
def test_an_extrapolation_at_a_price_looks_for_the_best_time_to_stop(budget: float) -> None:
    time = np.linspace(0, 0.5, 11)
    loss = 1 + 2 * np.exp(-3 * time)
    run = curve(loss.tolist(), (budget * time).tolist(), budget=budget)
    ahead = 0.5 + 0.5 * np.array([0.0625, 0.125, 0.25, 0.5, 1.0])
    best = set()
    for price in (0.1, 0.5, 0.9, 1.1, 1.3):
        gain = loss[-1] - (1 + 2 * np.exp(-3 * ahead)) - price * (ahead - 0.5)
        score = ExponentialRule(price / budget).score(run)[-1]
        assert score == pytest.approx(gain.max(), abs=1e-6)
        best.add(int(gain.argmax()))
    assert len(best) > 3


def test_fits_leave_out_what_is_not_known() -> None:
    time = np.linspace(0, 1, 8)
    loss = 1 + np.exp(-3 * time)
    holes = loss.copy()
    holes[[2, 5]] = np.nan
    shapes = [lambda t: np.exp(-3 * t)]
    fits = fit_prefixes(time, holes, shapes, 1.0)
    np.testing.assert_allclose(fits.level[-1], 1, atol=1e-9)
    np.testing.assert_allclose(fits.size[-1], 1, atol=1e-9)


@pytest.mark.parametrize("tail", [1.0, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_fits_are_those_of_each_window_alone(tail: float, scale: float) -> None:
    """phi falls by forty orders, and the loss by many: sums over all of it would be rounding."""
    time = np.linspace(0, 1, 120)
    noise = np.random.default_rng(0).normal(0, 0.02, 120)
    loss = scale * np.exp(-60 * time) + 0.5 * np.exp(-2 * time) + noise
    loss[[3, 40, 41, 90]] = np.nan
    shapes = [partial(lambda rate, t: np.exp(-rate * t), rate) for rate in (1.0, 10.0, 100.0)]
    fits = fit_prefixes(time, loss, shapes, tail)
    for n in range(1, 121):
        window = np.arange(n - max(int(np.ceil(tail * n)), min(n, 3)), n)
        mine = window[np.isfinite(loss[window])]
        if len(mine) < 3:
            assert np.isnan(fits.level[n - 1])
            continue
        y = loss[mine].astype(np.longdouble)
        best, expected = ((y - y.mean()) ** 2).sum(), np.full(2, y.mean())
        for phi in shapes:
            x = phi(time[mine].astype(np.longdouble))
            slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
            ahead = y.mean() + slope * (phi(np.array([time[n - 1], 1.0])) - x.mean())
            error = ((y - y.mean() - slope * (x - x.mean())) ** 2).sum()
            if slope > 0 and error < best:
                best, expected = error, ahead
        phi = shapes[fits.shape[n - 1]]
        found = fits.level[n - 1] + fits.size[n - 1] * phi(np.array([time[n - 1], 1.0]))
        np.testing.assert_allclose(found, expected.astype(float), rtol=1e-6, atol=1e-7)


def test_fits_know_nothing_later() -> None:
    time = np.linspace(0, 1, 50)
    loss = 1 + np.exp(-3 * time) + np.random.default_rng(0).normal(0, 0.1, 50)
    loss[[0, 1, 20]] = np.nan
    shapes = [lambda t: np.exp(-3 * t)]
    for tail in (1.0, 0.25):
        whole = fit_prefixes(time, np.append(loss[:-1], 1e300), shapes, tail)
        for n in range(50):
            part = fit_prefixes(time[:n], loss[:n], shapes, tail)
            for one, other in zip(part, whole, strict=True):
                np.testing.assert_array_equal(one, other[:n])
        assert (whole.size[-1], whole.level[-1] > 1e297) == (0, True)


def test_peers_of_the_same_task_are_counted() -> None:
    runs = Curves.from_matrix(np.linspace(5, [1, 2, 3, 4, 4.5], 11).T, task=["a"] * 5, budget=10.0)
    rule = PeersRule().fit(runs)
    losses = np.linspace(5, 2.5, 11)
    mine = curve(losses.tolist(), budget=10.0)._replace(task="a")
    worse = [(runs.values.reshape(5, 11)[:, t] > losses[t]).sum() for t in range(11)]
    ties = [(runs.values.reshape(5, 11)[:, t] == losses[t]).sum() for t in range(11)]
    expected = (np.array(worse) + np.array(ties) / 2) / 5
    np.testing.assert_allclose(rule.score(mine), expected)
    later = replace(rule, begin=0.5).score(mine)
    assert np.isposinf(later[:5]).all()
    np.testing.assert_allclose(later[5:], expected[5:])


def test_peers_of_a_new_task_are_compared_in_relative_units() -> None:
    runs = Curves.from_matrix(np.linspace(5, [1, 2, 3, 4, 4.5], 11).T, task=["a"] * 5)
    mine = curve((100 * np.linspace(5, 2.5, 11)).tolist())._replace(task="new")
    same = curve(np.linspace(5, 2.5, 11).tolist())._replace(task="new")
    rule = PeersRule().fit(runs)
    np.testing.assert_allclose(rule.score(mine), rule.score(same))
    assert rule.score(mine)[-1] == pytest.approx(0.6)


@pytest.mark.parametrize("num", [4, 5])
def test_five_peers_of_the_same_task_are_enough(num: int) -> None:
    """With fewer, those of all tasks count, by the share of the way that was left."""
    ends = [1.0] * num + [4.5] * 20
    runs = Curves.from_matrix(np.linspace(5, ends, 11).T, task=["a"] * num + ["b"] * 20)
    mine = curve(np.linspace(5, 3, 11).tolist())._replace(task="a")
    score = PeersRule().fit(runs).score(mine)[-1]
    assert score == pytest.approx(0.0 if num == 5 else 20 / 24)


def test_only_peers_that_still_run_count() -> None:
    losses = [[5.0, 1.0, np.nan], [5.0, 4.0, 3.0]] + [[5.0, 4.5, 4.0]] * 3
    rule = PeersRule().fit(Curves.from_matrix(losses, budget=2.0))
    assert rule.score(curve([5.0, 4.2, 3.5], budget=2.0)).tolist() == [0.5, 0.6, 0.75]
    assert len(PEER_SHARES) == 41


def test_a_peer_that_ends_at_a_share_but_for_rounding_ran_until_there() -> None:
    spent = [0.0, 0.1, 0.1 + 0.1 + 0.1 - 0.1 * 2.5e-10]
    runs = Curves.from_runs(
        [{"loss": np.array([5.0, 4.0, 3.0 - i]), "cost": np.array(spent)} for i in range(5)],
        metric="loss", cost="cost", direction="min", budget=0.4,
    )  # fmt: skip
    rule = PeersRule().fit(runs)
    assert rule.score(curve([5.0, 4.0, 0.5], [0.0, 0.1, 0.3], budget=0.4))[-1] == 0.6


def test_halving_speaks_at_rungs_alone() -> None:
    runs = population()
    halving = HalvingRule(1 / 9, 3.0).fit(runs)
    mine = curve(np.linspace(1, 0.3, 28).tolist(), budget=27.0)
    score, peers = halving.score(mine), PeersRule().fit(runs).score(mine)
    rungs = [3, 9, 27]
    assert np.flatnonzero(np.isfinite(score)).tolist() == rungs
    np.testing.assert_allclose(score[rungs], peers[rungs])


def test_labels_of_stopping_early_are_what_hindsight_says() -> None:
    runs = Curves.from_matrix([[3.0, 2.9, 1.0, 1.0], [3.0, 3.0, 3.0, 2.95]])
    rows = training_points(runs, 0.5)
    expected = []
    for run in runs:
        pays = np.minimum.accumulate(run.loss) + 0.5 * run.cost
        expected += [any(pays[t + 1 :] < pays[t]) for t in range(4)]
    assert rows.worth_going_on.tolist() == expected


def test_rows_end_at_success() -> None:
    runs = Curves.from_matrix([[3.0, 2.0, 1.0, 0.5], [3.0, 2.0, 2.0, 2.0]], target=1.0)
    rows = training_points(runs, None)
    assert list(zip(rows.run, rows.point, rows.worth_going_on, strict=True)) == [
        (0, 0, 1), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0)
    ]  # fmt: skip


def test_improvements_are_told_in_prices() -> None:
    table = np.sinh(worth_features(curve([4.0, 3.0, 2.5, 2.4], budget=10.0), 0.1))
    assert table[-1, 0] == pytest.approx(0.1 / 0.1)
    assert table[-1, 4] == pytest.approx(1.6 / 1.0)
    assert table[-1, 5] == pytest.approx(2.4 / 1.0)


@given(
    stop=st.lists(st.floats(-3, 3), min_size=1, max_size=8),
    end=st.floats(-3, 3),
    seed=st.integers(0, 1000),
)
def test_cost_to_go_is_that_of_the_first_stop(stop: list[float], end: float, seed: int) -> None:
    going = np.random.default_rng(seed).normal(size=len(stop))
    found = cost_to_go(np.array(stop), end, going)
    for t in range(len(stop)):
        later = [s for s in range(t + 1, len(stop)) if going[s] < 0]
        assert found[t] == (stop[later[0]] if later else end)


def test_a_bill_is_what_a_stop_costs() -> None:
    run = curve([3.0, 2.0, 1.0, 0.5], target=1.0, budget=4.0)
    stop, end = bill(run, None, 2.0)
    assert stop.tolist() == [0.0, 0.25]
    assert end == 0.5 - 2.0
    stop, end = bill(run, 0.5, 2.0)
    np.testing.assert_allclose(stop, [1.5, 1.25, 1.0, 1.0])
    assert end == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [LogisticCurveRule, BoostedTreesRule, ValueTreesRule])
def test_learned_rules_tell_runs_apart(kind: type[CurveRule]) -> None:
    train, test = population(60, seed=1), population(40, seed=2)
    rule = kind().fit(train)
    early = np.array([score[3] for score in rule.scores(test)])
    met = test.succeeded
    ranks = early[met][:, None] > early[~met]
    assert ranks.mean() > 0.85


@pytest.mark.parametrize("kind", [LogisticCurveRule, BoostedTreesRule, ValueTreesRule])
@pytest.mark.parametrize("price", [None, 0.02])
def test_scores_of_many_are_those_of_each(kind: type[CurveRule], price: float | None) -> None:
    runs = population()
    (rule, *_) = kind.candidates(price)
    fitted, ready = rule.fit(runs), rule.fit(with_inputs(runs, price))
    for many, kept, run in zip(
        fitted.scores(runs), ready.scores(with_inputs(runs, price)), runs, strict=True
    ):
        np.testing.assert_allclose(many, fitted.score(run), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(many, kept, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [LogisticCurveRule, BoostedTreesRule, ValueTreesRule])
def test_a_users_column_is_no_input_whatever_it_is_called(kind: type[CurveRule]) -> None:
    curves = population()
    named = replace(
        curves,
        columns=("input.lr", "input.cost", *curves.columns),
        values=np.hstack((np.full((len(curves.cost), 2), 0.1), curves.values)),
    )
    fitted = kind().fit(named)
    for runs in (named, with_inputs(named, None)):
        np.testing.assert_allclose(fitted.scores(runs)[0], kind().fit(curves).score(curves[0]))
    assert with_inputs(named, None).columns[:3] == named.columns


def test_rules_that_learned_nothing_say_so() -> None:
    with pytest.raises(InputError, match="call fit"):
        BoostedTreesRule().score(curve(FALLING))


@cache
def fitted() -> dict[str, list[CurveRule]]:
    """A setting of every rule, fitted."""
    runs = population()
    return {
        f"{name} at {price}": [rule.fit(runs) for rule in kind.candidates(price)[-1:]]
        for name, kind in curve_rules().items()
        for price in (None, 0.02)
    }


values = st.one_of(st.floats(-5, 5), st.just(np.nan), st.just(np.inf))


@settings(max_examples=10, deadline=None)
@given(
    losses=st.lists(values, min_size=1, max_size=14),
    first=st.floats(-5, 5),
    gaps=st.lists(st.floats(0.1, 3), min_size=15, max_size=15),
    target=st.one_of(st.just(np.nan), st.floats(-5, 5)),
    cut=st.integers(1, 14),
)
def test_no_rule_looks_ahead(
    losses: list[float],
    first: float,
    gaps: list[float],
    target: float,
    cut: int,
) -> None:
    loss = [first, *losses]
    cost = np.cumsum(gaps[: len(loss)])
    norm = np.abs(np.nan_to_num(np.array(loss)[::-1].copy(), posinf=1.0)) + 0.1
    run = Curve(cost, {"loss": np.array(loss), "grad_norm": norm}, "loss", "min", target, 50.0)
    before = run.until(min(cut, len(loss)))
    for name, rules in fitted().items():
        for rule in rules:
            whole, part = rule.score(run), rule.score(before)
            assert whole.shape == (len(loss),), name
            assert not np.isnan(whole).any(), name
            np.testing.assert_allclose(part, whole[: len(part)], rtol=1e-6, atol=1e-7, err_msg=name)
            np.testing.assert_allclose(rule.last_score(before), part[-1], rtol=1e-9, err_msg=name)


LAST_AT_ONCE = (
    *(PatienceRule(wait) for wait in ("points", "budget")),
    *(WindowedImprovementRule(0.1, window) for window in (1, 3, 20)),
    *(UntunedImprovementRule(price) for price in (None, 0.1)),
)


@given(
    losses=st.lists(st.one_of(values, st.integers(-2, 2).map(float)), min_size=1, max_size=30),
    is_steady=st.booleans(),
    direction=st.sampled_from(["min", "max"]),
)
def test_the_last_score_is_that_of_the_whole_curve(
    losses: list[float], is_steady: bool, direction: Any
) -> None:
    if is_steady:
        losses = sorted(np.nan_to_num(np.array(losses), nan=5.0, posinf=5.0), reverse=True)
    sign = -1.0 if direction == "max" else 1.0
    loss = sign * np.array(losses)
    run = Curve(np.arange(1.0, len(loss) + 1), {"loss": loss}, "loss", direction, np.nan, 50.0)
    for rule in LAST_AT_ONCE:
        np.testing.assert_allclose(rule.last_score(run), rule.score(run)[-1], err_msg=str(rule))


def test_best_so_far_ignores_what_is_not_known() -> None:
    found = best_so_far(np.array([np.nan, 3.0, np.nan, 4.0, 2.0]))
    assert found.tolist() == [np.inf, 3.0, 3.0, 3.0, 2.0]
