"""Figures of rules that give runs up, against loops over runs."""

import math
from dataclasses import replace

import numpy as np
import pytest

from haltwise import Curves
from haltwise._core.errors import DataWarning
from haltwise.curves.learning import EndedEarly, Learned, learn
from haltwise.evaluation.give_up import judge_learned, quarter_auc


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


def some_ended_early() -> Curves:
    """Falls to many limits, of three projects; every fourth run was ended after ten steps."""
    rng = np.random.default_rng(1)
    ends, rates = rng.uniform(0.2, 2.0, (60, 1)), rng.uniform(0.05, 0.8, (60, 1))
    losses = ends + (3 - ends) * np.exp(-rates * np.arange(25))
    losses[::4, 11:] = np.nan
    return Curves.from_matrix(
        losses, target=1.0, budget=24.0, group=[str(run % 3) for run in range(60)]
    )


@pytest.fixture(scope="module", params=["failures", "left out"])
def ended_early(request: pytest.FixtureRequest) -> EndedEarly:
    found: EndedEarly = request.param
    return found


@pytest.fixture(scope="module")
def learned(ended_early: EndedEarly) -> Learned:
    with pytest.warns(DataWarning, match=f"ended before their budget and are {ended_early}"):
        return learn(some_ended_early(), ended_early=ended_early)


def test_runs_that_were_ended_early_count_as_failures_or_are_left_out(
    ended_early: EndedEarly, learned: Learned
) -> None:
    curves = some_ended_early()
    early = [
        run
        for run, curve in enumerate(curves)
        if curve.loss.min() > 1.0 and curve.cost[-1] < curve.budget
    ]
    assert 3 < len(early) < 15
    kept = 60 if ended_early == "failures" else 60 - len(early)
    assert learned.curves.num_runs == kept
    assert int(learned.curves.censored.sum()) == len(early) * (kept == 60)
    assert learned.model.card.num_runs == kept
    assert learned.model.card.num_groups == 3


def test_figures_of_giving_up_are_sums_over_runs(learned: Learned) -> None:
    record, curves = judge_learned(learned), learned.curves
    spent = [float(curve.cost[curve.success if curve.success >= 0 else -1]) for curve in curves]
    failed = [run for run, curve in enumerate(curves) if curve.success < 0]
    assert (record.runs, record.succeeded) == (len(spent), len(spent) - len(failed))
    assert record.spent == pytest.approx(sum(spent))
    assert replace(record, cost_unit="hours").to_json()["hours"] == record.spent
    assert "hours" not in replace(record, cost_unit="steps").to_json()
    assert record.oracle_saved == pytest.approx(sum(spent[run] for run in failed) / sum(spent))
    for name, figures in record.levels.items():
        stops = learned.unseen(float(name))
        for group in ("", "0", "1", "2"):
            mine = [run for run in range(len(spent)) if group in ("", curves.group[run])]
            saved = sum(stops.saved[run, 0] for run in mine) / sum(spent[run] for run in mine)
            met = [run for run in mine if run not in failed]
            lost = sum(bool(stops.lost[run, 0]) for run in met) / len(met)
            found = (
                record.by_group[group][name] if group else (figures.saved.value, figures.lost.value)
            )
            assert found == pytest.approx((saved, lost))
        assert 0 <= figures.saved.low <= figures.saved.value <= figures.saved.high <= 1
