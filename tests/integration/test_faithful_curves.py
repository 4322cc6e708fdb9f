"""Recorded runs are read as what they are: nothing is lost, shifted, renamed or made up."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haltwise import DataWarning, HaltingMonitor
from haltwise.curves import Curves, read
from haltwise.curves.columns import Direction


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("scored", [False, True])
def test_a_recorded_loop_that_became_nan_diverged(
    tmp_path: Path, direction: Direction, scored: bool
) -> None:
    monitor = HaltingMonitor.recording(tmp_path, direction=direction)
    for value in (3.0, 2.0, 1.5, math.nan, math.nan):
        monitor.update(value, score=value if scored else None)
    monitor.close()
    curves = read(tmp_path)
    assert curves.metric == ("score" if scored else "loss")
    worst = math.inf if direction == "min" else -math.inf
    assert curves[0].columns[curves.metric].tolist() == [3, 2, 1.5, worst, worst]


def test_runs_are_counted_from_the_end_as_in_a_list() -> None:
    curves = Curves.from_matrix([[3.0, 2.0, 1.0], [4.0, 3.0, math.nan]], target=[1.0, 3.0])
    for run in (-1, -2):
        found, expected = curves[run], list(curves)[run]
        assert found.loss.tolist() == expected.loss.tolist()
        assert found.target == expected.target
    for beyond in (2, -3):
        with pytest.raises(IndexError):
            curves[beyond]


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ({"spent": [1.0, 2.0], "cost": [9.0, 8.0], "loss": [3.0, 2.0]}, {"cost_unit": "loss"}),
        ({"spent": [1.0, 2.0], "cost": [9.0, 8.0], "cost 2": [3.0, 2.0]}, {"cost_unit": "cost"}),
        ({"spent": [1e9, 1.015e9], "loss": [3.0, 2.0]}, {"budget": 2e9, "cost_unit": "tokens"}),
    ],
)
def test_saved_curves_are_read_as_they_were(
    tmp_path: Path, columns: dict[str, list[float]], settings: dict[str, Any]
) -> None:
    made = Curves.from_runs([columns], cost="spent", metric=list(columns)[-1], **settings)
    made.save(tmp_path / "saved.npz")
    found = read(tmp_path / "saved.npz")
    assert (found.columns, found.metric) == (made.columns, made.metric)
    assert found.cost_unit == made.cost_unit
    assert found.cost.tolist() == made.cost.tolist()
    assert found.values.tolist() == made.values.tolist()
    assert found.budget.tolist() == made.budget.tolist()


def test_budgets_that_are_times_of_day_are_counted_from_the_start_as_well(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("run,time,loss,end\na,1.7e9,3,1700000900\na,1700000600,2,1700000900\n")
    named: Any = {"cost": "time", "metric": "loss"}
    for budget, seconds in (("end", 900.0), (1_700_000_900, 900.0), (3600, 3600.0)):
        with pytest.warns(DataWarning, match="holds times of day"):
            found = read(path, budget=budget, **named)
        assert found.cost.tolist() == [0, 600]
        assert found.budget.tolist() == [seconds]
    times = np.array([[1.7e9, 1.7e9 + 60]])
    np.savez(tmp_path / "m.npz", losses=[[3.0, 2.0]], costs=times, budget=[1.7e9 + 90])
    with pytest.warns(DataWarning, match="holds times of day"):
        assert read(tmp_path / "m.npz").budget.tolist() == [90]


def test_runs_of_tables_in_folders_are_named_by_both(tmp_path: Path) -> None:
    for folder in ("exp_a1", "exp_b2", "deep/1"):
        (tmp_path / folder).mkdir(parents=True)
        rows = "".join(f"{run},{step},{3 - step}\n" for run in (1, 2) for step in (1, 2))
        (tmp_path / folder / "log.csv").write_text(f"run,step,loss\n{rows}")
    found = read(tmp_path, cost="step", metric="loss").name.tolist()
    assert found == [f"{each}/{run}" for each in ("deep/1", "exp_a1", "exp_b2") for run in (1, 2)]


def test_no_two_runs_have_one_name(tmp_path: Path) -> None:
    curves = Curves.from_matrix([[3.0, 2.0]] * 5, name=["a", "a (2)", "a", "a", "a (3)"])
    curves.save(tmp_path / "saved.npz")
    found = read(tmp_path / "saved.npz").name.tolist()
    assert found == ["a", "a (2)", "a (4)", "a (5)", "a (3)"]


def test_a_column_that_a_line_names_twice_takes_no_row_of_another(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = ('"a.b": 1, "a": {"b": 10}, "loss": 3', '"loss": 2', '"a.b": 3, "loss": 1')
    path.write_text("".join(f'{{"step": {step}, {line}}}\n' for step, line in enumerate(lines)))
    found = read(path, cost="step", metric="loss")
    np.testing.assert_equal(found[0].columns["a.b"], [10, np.nan, 3])


@pytest.mark.parametrize("year", [1900, 2026, 2261, 2500, 300_000, 10**9])
def test_dates_of_any_century_are_seconds_since_1970(year: int) -> None:
    days = np.array([f"{year}-01-01", "NaT"], "M8[D]")
    steps = {"step": [1, 2], "loss": [3.0, 2.0]}
    found = Curves.from_frame({**steps, "when": days}, cost="step", metric="loss")
    seconds = 86400.0 * float((days[0] - np.datetime64(0, "D")).astype(int))
    np.testing.assert_equal(found[0].columns["when"], [seconds, np.nan])
