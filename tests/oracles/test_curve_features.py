"""Every feature of a curve against its definition, worked out for one point in plain Python.

Models that ship read these numbers: a feature that changed would spoil them without a word.
"""

import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest

from haltwise import FitWarning
from haltwise.curves.curves import Curve, Direction
from haltwise.curves.features import FEATURES, curve_features, tell_lacking

PAST = (0.25, 0.5, 0.75, 0.9)
NAN = math.nan


def known(values: list[float]) -> list[float]:
    """The last value that was measured, at each point."""
    found: list[float] = []
    for value in values:
        found.append(found[-1] if math.isnan(value) and found else value)
    return found


def then(values: list[float], cost: list[float], past: float) -> float:
    """The value when that share of the last cost had been spent, by a line between points."""
    at = past * cost[-1]
    after = next(place for place, spent in enumerate(cost) if spent >= at)
    if after == 0:
        return values[0]
    share = (at - cost[after - 1]) / (cost[after] - cost[after - 1])
    low, high = values[after - 1], values[after]
    if math.isnan(low) or math.isnan(high):
        return high if math.isnan(low) else low
    return low + share * (high - low)


def clipped(value: float, low: float, high: float) -> float:
    return value if math.isnan(value) else min(max(value, low), high)


def log_beside_first(values: list[float]) -> list[float]:
    first = next((value for value in values if math.isfinite(value)), NAN)
    return [math.log(max(v / first, 1e-9)) if math.isfinite(v) else NAN for v in values]


def by_definition(
    spent: list[float],
    columns: dict[str, list[float]],
    metric: str,
    direction: Direction,
    target: float,
    budget: float,
) -> dict[str, float]:
    """The features at the last point of a curve, by name."""
    sign = -1.0 if direction == "max" else 1.0
    cost = [value / budget for value in spent]
    raw = [sign * value for value in columns[metric]]
    loss, goal = known(raw), sign * target
    unit = abs(next(value for value in loss if math.isfinite(value)) - goal)
    distance = [clipped((value - goal) / unit, -1.0, 3.0) for value in loss]
    best = [min(distance[: place + 1]) for place in range(len(distance))]
    logs = [math.log(max(value, 1e-3)) for value in best]
    since = max(p for p in range(len(best)) if p == 0 or best[p] < best[p - 1])
    seen = max(p for p in range(len(raw)) if p == 0 or not math.isnan(raw[p]))
    now, left = cost[-1], 1 - cost[-1]
    steps = [0.0, *(b - a for a, b in itertools.pairwise(distance))]
    recent = steps[-6:]
    noise = math.sqrt(sum(step**2 for step in recent) / len(recent))
    found = {
        "cost": now,
        "points": math.log(len(cost)),
        "distance": distance[-1],
        "best": best[-1],
        "stale": (now - cost[since]) / now,
        "unknown": now - cost[seen],
        "speed_needed": clipped(best[-1] / (1 - best[-1] + 1e-3) * now / (left + 1e-3), 0, 50),
        "noise": noise,
        "noise_ratio": math.log(noise + 1e-3) - math.log(then(best, cost, 0.5) - best[-1] + 1e-3),
        "climbed": sum(max(step, 0.0) for step in steps),
    }
    for past in PAST:
        found[f"best_gain_{past}"] = then(best, cost, past) - best[-1]
        found[f"gain_{past}"] = then(distance, cost, past) - distance[-1]
        # Through then and now a power of the cost and a straight line, both to the budget's end.
        power = (then(logs, cost, past) - logs[-1]) / -math.log(past)
        slope = (then(best, cost, past) - best[-1]) / (now * (1 - past) + 1e-6)
        found[f"power_{past}"] = power
        found[f"power_end_{past}"] = clipped(logs[-1] + power * math.log(now), -10, 3)
        found[f"line_end_{past}"] = clipped(best[-1] - slope * left, -3, 3)
        found[f"line_ratio_{past}"] = logs[-1] - math.log(max(slope * left, 1e-6))
    lacking = [NAN] * len(cost)
    train_metric = known(columns.get("train_accuracy", lacking))
    away = [clipped((sign * value - goal) / unit, -3, 3) for value in train_metric]
    found |= {"train_distance": away[-1], "gap": away[-1] - distance[-1]}
    found |= {f"train_gain_{past}": then(away, cost, past) - away[-1] for past in (0.5, 0.75)}
    train, valid, norm = (
        known(columns.get(name, lacking)) for name in ("train_loss", "val_loss", "grad_norm")
    )
    for name, values in (("train_loss", train), ("valid_loss", valid)):
        falls = log_beside_first(values)
        found[name] = falls[-1]
        found |= {f"{name}_fall_{p}": then(falls, cost, p) - falls[-1] for p in (0.5, 0.75)}
    ratio = train[-1] / valid[-1]
    found["loss_ratio"] = NAN if math.isnan(ratio) else clipped(math.log(ratio), -10, 10)
    falls = log_beside_first(norm)
    found |= {"grad_norm": falls[-1], "grad_norm_fall_0.5": then(falls, cost, 0.5) - falls[-1]}
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", ["min", "max"])
def test_features_are_what_their_definitions_say(seed: int, direction: Direction) -> None:
    random = np.random.default_rng(seed)
    num = 14
    spent = np.cumsum(random.uniform(0.2, 2, num))
    metric = 2 * np.exp(-spent / random.uniform(2, 15)) + 0.3 * random.standard_normal(num)
    metric[1:][random.random(num - 1) < 0.2] = NAN
    if seed == 1:
        metric[5] += 20  # beyond what is told apart
    columns = {
        "score": -metric if direction == "max" else metric,
        "train_accuracy": 5 * random.standard_normal(num),
        "train_loss": random.uniform(0.1, 3, num),
        "val_loss": random.uniform(0.1, 3, num),
        "grad_norm": random.uniform(0.1, 3, num),
    }
    columns["train_loss"][2:4] = columns["val_loss"][:2] = columns["grad_norm"][-1] = NAN
    for name in list(columns)[1 : 1 + seed % 3]:
        del columns[name]
    target, budget = float(columns["score"][0]) + (1.5 if direction == "max" else -1.5), 22.0
    curve = Curve(spent, columns, "score", direction, target, budget)
    features = curve_features(curve)
    for last in (1, 3, num + 1):
        np.testing.assert_array_equal(curve_features(curve, last), features[-last:])
    lists = {name: values.tolist() for name, values in columns.items()}
    for num_seen in range(2, num + 1):
        seen = {name: values[:num_seen] for name, values in lists.items()}
        expected = by_definition(
            spent.tolist()[:num_seen], seen, "score", direction, target, budget
        )
        found = dict(zip(FEATURES, features[num_seen - 1], strict=True))
        for name in FEATURES:
            np.testing.assert_allclose(
                found[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=f"{name} at {num_seen}"
            )


def test_where_a_column_lacks_that_trees_have_hardly_seen_a_run_without_nothing_is_told() -> None:
    """It counts as known from the point on at which it was measured first."""
    score, nan = np.arange(5.0), np.full(5, NAN)
    late = np.array([NAN, NAN, 0.3, NAN, 0.2])
    for shares, column, expected in (
        ({"grad_norm": 0.95}, nan, [np.inf] * 5),
        ({"grad_norm": 0.95}, late, [np.inf, np.inf, 2.0, 3.0, 4.0]),
        ({"grad_norm": 0.85}, nan, score.tolist()),  # trees know runs without it
        ({}, nan, score.tolist()),
    ):
        columns = {"metric": np.ones(5), "gradient_norm": column}
        curve = Curve(np.arange(5.0), columns, "metric", "min", 0.5, 10.0)
        warns = expected[-1] == np.inf
        with pytest.warns(FitWarning, match="a column .*grad_norm") if warns else nullcontext():
            assert tell_lacking(curve, shares, score).tolist() == expected
        if not warns:  # the last points alone, as a monitor asks
            assert tell_lacking(curve, shares, score[-1:]).tolist() == expected[-1:]
