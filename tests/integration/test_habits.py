"""What people are used to: values that print, numbers of any kind, SciPy's ways, typed names."""

import runpy
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import haltwise
from haltwise import InputError
from haltwise.curves import Curves
from haltwise.halting.session import HaltingSession
from haltwise.interfaces.optuna import HaltwisePruner
from haltwise.interfaces.run_monitor import RunMonitor
from haltwise.interfaces.scipy import RunCallback as ScipyCallback
from haltwise.processes.trajectory import Trajectory
from haltwise.recordings.runs import RecordedRuns
from haltwise.tasks import family
from haltwise.update_rules import SGD


def monitored(level: float | None = None) -> RunMonitor:
    """A monitor of accuracies that should reach .9 in 9 hours."""
    return RunMonitor(
        "training-runs", metric="accuracy", direction="max", target=0.9, budget=9, level=level
    )


def described() -> list[tuple[object, list[str]]]:
    """Public things, and what one wants to know of each."""
    model, runs = haltwise.load("regression-2d"), haltwise.load("training-runs")
    curves = Curves.from_matrix([[3.0, 2.0, 1.5], [3.0, 2.9, 2.9]], target=1.5)
    losses = torch.ones(5, 4)
    batch = family("regression-10d").sample(5, torch.Generator().manual_seed(0))
    policy = model.policy()
    swapped: Any = torch.square
    return [
        (model, ["lstm on regression-2d", "40 steps", "0.0527", "weights"]),
        (model.halting, ["HaltingModel(stick-breaking"]),
        (model.card, ["Card(", "policies for updates and gradients"]),
        (haltwise.load("regression-2d-lstm"), ["regression-2d"]),
        (runs, [f"{runs.card.num_runs:,} runs", "hours", "1 %"]),
        (curves, ["2 runs", "6 points"]),
        (curves[0], ["3 points", "loss (min) 1.5 after 2,", "budget 2"]),
        (batch, ["5 problems of 10 parameters", "float32"]),
        (haltwise.FunctionBatch(torch.zeros(4, 2), torch.square), ["4 problems of 2"]),
        (haltwise.FunctionBatch({"a": torch.zeros(4, 2)}, torch.square), ["4 problems"]),
        (haltwise.FunctionBatch(swapped, swapped), ["start is a "]),
        (Trajectory(losses, losses), ["5 items over 3 steps", "loss, excess)"]),
        (RecordedRuns(Trajectory(losses, losses), "loss"), ["5 runs of 3 steps", "lower"]),
        (HaltingSession(policy, torch.tensor([0.1, 0.2])), ["2 items", "0.1 to 0.2"]),
        (HaltingSession(policy, torch.zeros(0)), ["0 items, "]),
        (
            haltwise.solve(batch, method=SGD(0.01, momentum=0.9)),
            ["momentum=0.9, nesterov=", "): "],
        ),
        (haltwise.HaltingMonitor("regression-10d-plain-adam", price=0.01), ["0.01", "goes on"]),
        (haltwise.HaltingMonitor.recording("somewhere"), ["recording to somewhere", "0 rounds"]),
        (monitored(), ["accuracy (max)", "0 points", "goes on"]),
        (ScipyCallback(monitored()), ["RunCallback(RunMonitor(", "accuracy (max)"]),
        (HaltwisePruner("training-runs"), ["CurveModel, at the pace", "that of the best trial"]),
        (HaltwisePruner("training-runs", lost=0.05, target=0.2, budget=9), ["0.2, budget 9"]),
    ]


@pytest.mark.parametrize("place", range(22))
def test_what_is_printed_tells_what_it_is(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    thing, words = described()[place]
    text = repr(thing)
    assert len(text) < 400
    assert "\n" not in text
    assert " at 0x" not in text
    assert [word for word in words if word not in text] == []


def test_a_monitor_tells_how_it_stands() -> None:
    monitor = monitored(level=1e9)
    for hour in range(9):
        monitor.update(0.01, cost=hour)
    assert monitor.reason is not None
    assert f"stops: {monitor.reason}" in repr(monitor)
    lucky = monitored()
    lucky.update(0.95, cost=1)
    assert "met its target" in repr(lucky)


class Half:
    """A number of somebody's library."""

    def __float__(self) -> float:
        return 0.5


@pytest.mark.parametrize("value", [Fraction(1, 2), Decimal("0.5"), Half(), np.float16(0.5)])
def test_whatever_is_a_float_at_need_is_a_loss(value: Half) -> None:
    monitor = monitored()
    monitor.update(value, cost=value)
    assert monitor.curve.loss.tolist() == [-0.5]
    assert monitor.curve.cost.tolist() == [0.5]


@pytest.mark.parametrize("value", ["0.5", [0.5], True, 1j, None])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="must be a single real number"):
        monitored().update(value, cost=1)


def test_minimize_gives_and_prints_what_scipy_does(capsys: pytest.CaptureFixture[str]) -> None:
    def fun(x: np.typing.NDArray[np.float64]) -> float:
        return float(((x - 1) ** 2).sum())

    result = haltwise.minimize(fun, np.zeros(10), jac=lambda x: 2 * (x - 1), disp=True)
    said = capsys.readouterr().out
    for words in (result.message, f"Iterations: {result.nit}", f"evaluations: {result.nfev}"):
        assert words in said
    taken_back = haltwise.minimize(fun, np.ones(10), jac=lambda x: 2 * (x - 1), maxiter=3)
    assert capsys.readouterr().out == ""
    for found in (result, taken_back):
        if found.jac is not None:
            np.testing.assert_array_equal(found.jac, 2 * (found.x - 1))
    assert any(found.jac is not None for found in (result, taken_back))


def test_minimize_says_where_options_go() -> None:
    with pytest.raises(InputError, match=r"write maxiter=3, disp=True"):
        haltwise.minimize(abs, [0.0], options={"maxiter": 3, "disp": True})


def test_the_typed_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(__file__).parents[1] / "typed" / "user.py"), run_name="__main__")
    assert "4 problems" in capsys.readouterr().out
