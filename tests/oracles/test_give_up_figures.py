"""Figures of rules that give runs up, against loops over runs."""

import math

import numpy as np
import pytest

from haltwise import Curves
from haltwise.evaluation.give_up import quarter_auc


@pytest.mark.parametrize("seed", range(5))
def test_the_area_at_a_quarter_of_the_budget_is_a_share_of_pairs(seed: int) -> None:
    """Of a success and a failure of its task that both run on, in how many the former is ahead."""
    rng = np.random.default_rng(seed)
    runs = [
        {"loss": rng.random(num), "step": np.arange(num) + rng.random()}
        for num in rng.integers(1, 12, 40)
    ]
    task = [f"{label}" for label in rng.integers(0, 3, 40)]
    budget = rng.choice([4.0, 8.0, 12.0], 40)
    curves = Curves.from_runs(
        runs, metric="loss", cost="step", target=0.1, budget=budget, task=task
    )
    # Few values, so that there are ties.
    chances = [rng.integers(0, 4, curve.num_points) / 4 for curve in curves]

    at: dict[int, float] = {}
    for run, curve in enumerate(curves):
        seen = [point for point, cost in enumerate(curve.cost) if cost <= curve.budget / 4]
        if not seen or seen[-1] == curve.num_points - 1:
            continue  # nothing was measured by then, or it had ended
        if 0 <= curve.success <= seen[-1]:
            continue
        at[run] = float(chances[run][seen[-1]])
    met = [run for run in at if curves[run].success >= 0]
    failed = [run for run in at if curves[run].success < 0]
    pairs = [
        (at[good] > at[bad]) + 0.5 * (at[good] == at[bad])
        for good in met
        for bad in failed
        if curves[good].task == curves[bad].task
    ]
    assert len(pairs) > 20
    assert quarter_auc(curves, chances) == pytest.approx(sum(pairs) / len(pairs))


def test_without_a_pair_there_is_no_area() -> None:
    curves = Curves.from_matrix([[3.0, 2.0, 1.0], [3.0, 3.0, 3.0]], target=1.5, task=["a", "b"])
    assert math.isnan(quarter_auc(curves, [np.ones(3), np.zeros(3)]))
