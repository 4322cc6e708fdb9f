"""The points of runs that a forecast is fitted to: what they say of the run must be true."""

import tracemalloc

import numpy as np
import pytest

from haltwise import Curves
from haltwise.curves.curves import Direction
from haltwise.curves.features import FEATURES
from haltwise.curves.forecast import Forecast
from haltwise.curves.learning import cross_fit, learn, rows_of

POINTS, BUDGET = 30, 29.0


def runs_of(direction: Direction, seed: int = 0) -> Curves:
    """Noisy falls to many limits, of two tasks; most miss their own targets."""
    rng = np.random.default_rng(seed)
    ends, rates = rng.uniform(0.2, 2.0, (40, 1)), rng.uniform(0.03, 0.4, (40, 1))
    losses = ends + (3 - ends) * np.exp(-rates * np.arange(POINTS))
    losses += 0.02 * rng.standard_normal(losses.shape)
    sign = -1.0 if direction == "max" else 1.0
    return Curves.from_matrix(
        sign * losses,
        target=sign * rng.choice([0.5, 0.8, 1.2], 40),
        budget=BUDGET,
        direction=direction,
        task=[str(run % 2) for run in range(40)],
    )


@pytest.mark.parametrize("direction", ["min", "max"])
def test_rows_are_points_before_the_end_with_what_became_of_the_run(direction: Direction) -> None:
    curves = runs_of(direction)
    rows = rows_of(curves, seed=1)
    cost, distance = (rows.features[:, FEATURES.index(name)] for name in ("cost", "distance"))
    harder = known = met = 0
    for place, run in enumerate(rows.run):
        curve = curves[int(run)]
        point = round(cost[place] * BUDGET)
        assert curve.cost[point] == pytest.approx(cost[place] * BUDGET)
        share = distance[place]
        target = curve.loss_target
        if rows.easier[place]:  # the target that this distance was measured from
            if not -0.99 < share < 0.99:
                continue
            target = (curve.loss[point] - share * curve.loss[0]) / (1 - share)
            harder += target < curve.loss_target - 1e-9
            met += target > curve.loss_target + 1e-9 and rows.success[place] > (curve.success >= 0)
        known += 1
        assert rows.success[place] == (curve.loss.min() <= target + 1e-9)
        assert curve.loss[: point + 1].min() > target - 1e-9
    assert harder == 0
    assert met > 50
    assert known > 0.8 * len(rows.run)


def test_the_points_of_a_run_weigh_one_and_with_each_easier_target_half() -> None:
    curves = runs_of("min")
    rows = rows_of(curves, seed=1)
    for run in range(curves.num_runs):
        mine = rows.run == run
        own, easier = (rows.weight[mine & (rows.easier == flag)].sum() for flag in (False, True))
        assert own == pytest.approx(1.0)
        assert easier == pytest.approx(1.0)  # of two
        cost = rows.features[mine & ~rows.easier, FEATURES.index("cost")]
        assert len(cost) == len(set(np.floor(20 * cost + 1e-9)))  # one in each twentieth
        assert cost.min() > 0


def log_loss(curves: Curves, chances: list[np.ndarray]) -> float:
    """The mean over runs of the mean over the points before their end."""
    each = []
    for curve, chance in zip(curves, chances, strict=True):
        before = chance[: curve.success] if curve.success >= 0 else chance
        right = before if curve.success >= 0 else 1 - before
        each.append(-np.log(right).mean() if len(right) else 0.0)
    return float(np.mean(each))


def test_a_forecast_learned_elsewhere_is_taken_where_it_lowers_the_log_loss() -> None:
    curves = runs_of("min", seed=2).with_groups([str(run % 3) for run in range(40)])
    base = Forecast.fit(rows_of(runs_of("min", seed=3), seed=0), seed=0)
    found = learn(curves, base=base)
    own = rows_of(found.curves, 0)
    without, beside = (cross_fit(own, found.curves, found.folds, 0, each) for each in (None, base))
    assert log_loss(found.curves, beside) < log_loss(found.curves, without)
    for chance, expected in zip(found.chances, beside, strict=True):
        np.testing.assert_array_equal(chance, expected)
    assert found.model.card.provenance["pretrained"] is True
    assert found.model.forecast.base is not None


def test_learning_from_long_runs_does_not_hold_the_features_of_all_their_points() -> None:
    rng = np.random.default_rng(0)
    ends = rng.uniform(0.2, 1.8, (24, 1))
    losses = ends + (3 - ends) * np.exp(-np.arange(4000) / 500)
    curves = Curves.from_matrix(losses, target=1.0, group=[str(run % 4) for run in range(24)])
    pytest.importorskip("sklearn.ensemble")  # whose modules are not counted
    tracemalloc.start()
    learn(curves)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(curves.cost) * len(FEATURES) * 8
