"""Features, trees and levels of curves against brute force and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltwise import Curves, InputError
from haltwise.curves.bins import Bins
from haltwise.curves.curves import Curve
from haltwise.curves.features import FEATURES, curve_features
from haltwise.curves.forecast import Forecast, Rows
from haltwise.curves.levels import GiveUps, level_for
from haltwise.curves.model import per_cost
from haltwise.curves.trees import Trees

# Thousandths, so that no difference is lost where a shift is added.
_NUMBER = st.integers(-5000, 5000).map(lambda number: number / 1000)
_VALUE = st.one_of(_NUMBER, st.just(np.nan), st.just(np.inf))


@st.composite
def _curves(draw: st.DrawFn) -> Curve:
    num = draw(st.integers(1, 12))
    gaps = draw(st.lists(st.floats(0.1, 3.0), min_size=num, max_size=num))
    columns = {
        name: np.array(draw(st.lists(_VALUE, min_size=num, max_size=num)))
        for name in ("metric", "train_loss", "grad_norm")
    }
    return Curve(np.cumsum(gaps), columns, "metric", "min", draw(_NUMBER), 40.0)


@given(_curves(), st.floats(0.01, 100), st.floats(-10, 10), st.floats(0.01, 100))
@settings(max_examples=60, deadline=None)
def test_features_use_nothing_later_and_know_no_units(
    curve: Curve, scale: float, shift: float, unit: float
) -> None:
    features = curve_features(curve)
    assert features.shape == (curve.num_points, len(FEATURES))
    for num in range(1, curve.num_points + 1):
        np.testing.assert_array_equal(curve_features(curve.until(num)), features[:num])
    columns = dict(curve.columns)
    columns["metric"] = scale * columns["metric"] + shift
    columns["train_loss"] = scale * columns["train_loss"]
    other = curve._replace(
        cost=unit * curve.cost,
        budget=unit * curve.budget,
        columns=columns,
        target=scale * curve.target + shift,
    )
    if abs(curve.loss[np.isfinite(curve.loss)][:1] - curve.target).min(initial=1) > 1e-3:
        np.testing.assert_allclose(
            curve_features(other)[:, _SHIFTED], features[:, _SHIFTED], rtol=1e-4, atol=1e-4
        )


_SHIFTED = [not name.startswith(("valid_loss", "loss_ratio")) for name in FEATURES]
"""Features that know no shift; a loss of validation, for which the metric may stand, has a zero."""


@pytest.mark.parametrize(("lowest", "stands"), [(0.2, True), (-0.2, False)])
def test_a_positive_metric_that_falls_stands_for_the_loss_of_validation(
    lowest: float, stands: bool
) -> None:
    loss = np.linspace(2.0, lowest, 9)
    named = {"metric": loss, "valid_loss": loss}
    alone = curve_features(Curve(np.arange(9.0), {"metric": loss}, "metric", "min", 0.1, 8.0))
    beside = curve_features(Curve(np.arange(9.0), named, "metric", "min", 0.1, 8.0))
    known = 9 if stands else 8  # until it is negative
    np.testing.assert_array_equal(alone[:known], beside[:known])
    assert np.isnan(alone[known:, FEATURES.index("valid_loss")]).all()
    scaled = Curve(np.arange(9.0), {"metric": 7 * loss}, "metric", "min", 0.7, 8.0)
    np.testing.assert_allclose(curve_features(scaled), alone)


def test_features_of_a_maximised_metric_are_those_of_its_negative() -> None:
    rng = np.random.default_rng(0)
    loss = 3 - np.log1p(np.arange(30)) + 0.1 * rng.standard_normal(30)
    low = Curves.from_matrix([loss], target=0.5)[0]
    high = Curves.from_matrix([-loss], target=-0.5, direction="max")[0]
    found, other = (curve_features(curve)[:, _SHIFTED] for curve in (low, high))
    np.testing.assert_array_equal(found, other)


def test_a_power_law_is_extrapolated_exactly() -> None:
    cost = np.arange(1.0, 51.0)
    curve = Curve(cost, {"loss": 2 * cost**-0.5}, "loss", "min", 0.0, 100.0)
    found = dict(zip(FEATURES, curve_features(curve)[-1], strict=True))
    # Between points there are lines, so the value at 12.5 is a little too high.
    assert found["power_0.5"] == pytest.approx(0.5, abs=1e-3)
    # At the end of the budget a tenth of the first distance to the target is left.
    assert found["power_end_0.5"] == pytest.approx(np.log(0.1), abs=1e-2)


def _data(num: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(num, len(FEATURES)))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    return rows, np.nan_to_num(rows[:, 0] + rows[:, 1] * rows[:, 2]) > 0, rng


def test_trees_are_those_of_scikit_learn() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    rows, success, rng = _data(1500)
    num = rows.shape[1]
    rows = rows.astype(np.float32).astype(np.float64)
    boosted = HistGradientBoostingClassifier(max_iter=20).fit(rows, success)
    np.testing.assert_allclose(
        Trees.of(boosted, num)(rows), boosted.decision_function(rows), atol=1e-5
    )
    regressor = HistGradientBoostingRegressor(max_iter=20).fit(rows, rng.normal(size=len(rows)))
    np.testing.assert_allclose(Trees.of(regressor, num)(rows), regressor.predict(rows), atol=1e-5)


def test_bins_are_of_equal_weight_and_trees_of_them_are_those_of_scikit_learn() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, success, rng = _data(1500)
    rows[:, 3] = rng.integers(0, 5, len(rows))
    rows[:, 4] = 2.0
    rows[:, 5] = np.minimum(rows[:, 5], 0.0)  # above the edge at 0 is nothing
    rows = rows.astype(np.float32).astype(np.float64)
    weight = rng.integers(1, 9, len(rows)).astype(np.float64)
    bins = Bins.of(rows, weight, 16)
    np.testing.assert_array_equal(bins.edges[3], [0.5, 1.5, 2.5, 3.5])
    assert len(bins.edges[4]) == 0
    for place, edges in enumerate(bins.edges):
        known = ~np.isnan(rows[:, place])
        values, number = rows[known, place], bins.number[known, place]
        assert np.isnan(bins.number[~known, place]).all()
        np.testing.assert_array_equal(number, (values[:, None] > edges).sum(1))
        shares = [weight[known][number == each].sum() for each in range(len(edges) + 1)]
        if place not in (3, 4, 5):
            most = weight[known].sum() / 16 + weight.max()
            assert len(edges) == 15
            assert max(shares) <= most
        assert min(shares) > 0
    model = HistGradientBoostingClassifier(max_iter=20, max_bins=16)
    model.fit(bins.number, success, sample_weight=weight)
    found = Trees.of(model, rows.shape[1], bins)(rows)
    np.testing.assert_allclose(found, model.decision_function(bins.number), atol=1e-5)


@pytest.mark.parametrize("name", ["feature", "left", "right"])
def test_a_tree_that_points_beyond_its_end_is_refused(name: str) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, success, _ = _data(300)
    trees = Trees.of(HistGradientBoostingClassifier(max_iter=2).fit(rows, success), rows.shape[1])
    for wrong in (-1, 30_000):
        nodes = {key: array.copy() for key, array in trees.nodes.items()}
        nodes[name][0, 0] = wrong
        with pytest.raises(InputError, match=name):
            Trees(nodes, 0.0, rows.shape[1])


def test_trees_in_a_file_are_the_same_trees_without_their_children() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, success, _ = _data(900)
    rows, num = rows.astype(np.float32).astype(np.float64), rows.shape[1]
    # Best first, scikit-learn's order of nodes is not that of levels.
    for leaves in (7, 30):
        boosted = HistGradientBoostingClassifier(max_iter=9, max_leaf_nodes=leaves)
        trees = Trees.of(boosted.fit(rows, success), num)
        arrays = trees.to_arrays()
        again = Trees.from_arrays(arrays, trees.base, num)
        np.testing.assert_array_equal(again(rows), trees(rows))
        for name, array in again.to_arrays().items():
            np.testing.assert_array_equal(array, arrays[name])
        short = {name: array[:, :-1] for name, array in arrays.items()}
        with pytest.raises(InputError, match="the file is damaged"):
            Trees.from_arrays(short, trees.base, num)
        with pytest.raises(InputError, match="learn them again"):
            Trees.from_arrays(trees.nodes, trees.base, num)


def test_a_tree_that_goes_in_circles_is_refused() -> None:
    nodes = {
        "feature": [[0, 0]],
        "threshold": [[0.0, 0.0]],
        "missing_left": [[True, True]],
        "left": [[1, 0]],
        "right": [[1, 0]],
        "value": [[0.0, 0.0]],
    }
    trees = Trees({name: np.array(values) for name, values in nodes.items()}, 0.0, 1)
    with pytest.raises(InputError, match="more than 64 levels"):
        trees(np.zeros((1, 1)))


def test_thinned_rows_weigh_what_all_weighed() -> None:
    rng = np.random.default_rng(4)
    num, weight = 5000, rng.random(5000)
    rows = Rows(rng.random((num, 1)), rng.random(num) < 0.5, weight, np.arange(num), weight < 0)
    assert rows.thinned(num, seed=0) is rows
    few = rows.thinned(500, seed=0)
    assert len(few.weight) <= 500 == few.weight.sum()
    # Systematic: of every stretch of rows a share is drawn that is its share of the weight.
    for part in np.array_split(np.arange(num), 10):
        drawn = few.weight[np.isin(few.run, part)].sum()
        assert abs(drawn - 500 * weight[part].sum() / weight.sum()) < 1
    assert not np.array_equal(few.run, rows.thinned(500, seed=1).run)


def test_the_name_of_the_metric_tells_nothing() -> None:
    found = [
        curve_features(Curve(np.arange(9.0), {name: np.exp(-np.arange(9.0))}, name, "min", 0.1, 20))
        for name in ("score", "loss", "val_loss")
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_a_forecast_is_a_mean_of_log_odds_and_comes_back_with_its_base() -> None:
    rows, success, _ = _data(600)
    number = np.arange(len(rows))
    given = Rows(rows, success, np.ones(len(rows)), number, number % 3 == 0)
    base = Forecast.fit(given, seed=0)
    forecast = Forecast.fit(given, seed=1, base=base)
    again = Forecast.from_arrays(*forecast.to_arrays())
    np.testing.assert_array_equal(again.chance(rows), forecast.chance(rows))
    assert not np.array_equal(base.chance(rows), forecast.chance(rows))
    whole = np.nan_to_num(rows)
    odds = np.mean([trees(whole) for trees in base.members.values()], 0)
    expected = np.clip(1 / (1 + np.exp(-odds)), 1e-4, 1 - 1e-4)
    np.testing.assert_allclose(base.chance(whole), expected, atol=1e-5)
    arrays, document = base.to_arrays()
    with pytest.raises(InputError, match="learn it again with this version"):
        Forecast.from_arrays(arrays, {"bases": document["members"]})  # as once there were forests


def _random_runs(rng: np.random.Generator) -> tuple[Curves, list[np.ndarray]]:
    runs = [rng.random(rng.integers(1, 9)) for _ in range(30)]
    curves = Curves.from_runs([{"loss": run} for run in runs], metric="loss", target=0.15)
    return curves, [rng.random(len(run)) for run in runs]


def test_where_features_never_vary_the_forecast_is_the_share_of_successes() -> None:
    success, weight = np.arange(60) % 4 == 0, np.linspace(1, 2, 60)
    rows = Rows(np.zeros((60, len(FEATURES))), success, weight, np.arange(60), np.zeros(60, bool))
    chance = Forecast.fit(rows, seed=0).chance(rows.features[:3])
    share = weight[success].sum() / weight.sum()
    np.testing.assert_allclose(chance, share, atol=1e-3)


def test_giving_up_against_a_loop() -> None:
    curves, scores = _random_runs(np.random.default_rng(2))
    levels = np.linspace(0.05, 0.95, 7)
    stops = GiveUps.of(curves, scores, levels)
    for run, (curve, score) in enumerate(zip(curves, scores, strict=True)):
        for place, level in enumerate(levels):
            saved, lost = 0.0, False
            for step in range(curve.num_points):
                if curve.success == step:
                    break
                if score[step] < level:
                    last = curve.success if curve.success >= 0 else curve.num_points - 1
                    saved, lost = curve.cost[last] - curve.cost[step], curve.success >= 0
                    break
            assert stops.saved[run, place] == saved
            assert stops.lost[run, place] == lost


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_level_is_the_highest_below_which_none_loses_more(share: float, margin: float) -> None:
    curves, scores = _random_runs(np.random.default_rng(3))
    levels = np.linspace(0.01, 0.99, 40)
    stops = GiveUps.of(curves, scores, levels)
    group = np.array([str(run % 5) for run in range(curves.num_runs)])
    level = level_for(stops, group, share, margin=margin)
    allowed = levels <= level
    assert (stops.share_lost[allowed] <= share).all()
    if margin == 0 and not allowed.all():
        assert stops.share_lost[allowed.sum()] > share
    assert level <= level_for(stops, group, share)


@pytest.mark.parametrize("num_groups", [1, 2, 5])
@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_a_level_stays_standard_errors_over_groups_below_what_may_be_lost(
    num_groups: int, margin: float
) -> None:
    """Each group is left out once (Efron & Tibshirani 1993, Eq. 11.5); of one it is binomial."""
    rng = np.random.default_rng(4)
    curves, scores = _random_runs(rng)
    levels = np.linspace(0.01, 0.99, 40)
    stops = GiveUps.of(curves, scores, levels)
    group = np.array([str(label) for label in np.sort(rng.integers(0, num_groups, len(scores)))])

    def share_lost(runs: list[int], place: int) -> float:
        return sum(bool(stops.lost[run, place]) for run in runs) / len(runs)

    met = [run for run in range(curves.num_runs) if stops.succeeded[run]]
    chosen = set()
    for share in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        expected = -np.inf
        for place, level in enumerate(levels):
            lost = share_lost(met, place)
            if num_groups == 1:
                error = (lost * (1 - lost) / len(met)) ** 0.5
            else:
                left = [
                    share_lost([run for run in met if group[run] != label], place)
                    for label in sorted({group[run] for run in met})
                ]
                mean, num = sum(left) / len(left), len(left)
                error = ((num - 1) / num * sum((one - mean) ** 2 for one in left)) ** 0.5
            if lost + margin * error > share:
                break
            expected = level
        assert level_for(stops, group, share, margin=margin) == expected
        chosen.add(expected)
    assert len(chosen) > 3


def test_the_score_is_the_chance_per_cost_to_come() -> None:
    curve = Curves.from_matrix([[3.0, 2.0, 1.0]], target=0.0, budget=2.0)[0]
    # With 1 left a run that fails spends 1 more, one that succeeds half: .75 at even odds.
    # Before a twentieth of the budget nothing is given up.
    assert per_cost(curve, np.full(3, 0.5)).tolist() == [np.inf, 0.5 / 0.75, np.inf]
