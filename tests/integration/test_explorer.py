"""What the explorer shows is what an execution does, problem by problem and price by price."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_process
import pytest
import torch

import haltwise
from haltwise import InputError, tasks
from haltwise._core.random import stream
from haltwise.halting.session import HaltingSession
from haltwise.processes.optimization import OptimizationProcess
from haltwise.report import write_explorer
from haltwise.report.explorer import explore
from haltwise.report.page import write_page
from haltwise.rollout.early_exit import Outcome, run_until_halted
from haltwise.stop_rules import CostUnit

HORIZON = 12


def shown_of(name: str, family: str, num_problems: int) -> tuple[dict[str, Any], Any, Any]:
    """What is shown, the model, and the problems it is shown on, all in float64."""
    drawn = tasks.family(family)
    shown = explore(
        haltwise.load(name), drawn, stream(5, "x"), num_problems=num_problems, num_steps=HORIZON
    )
    problems = drawn.sample(num_problems, stream(5, "x"), dtype=torch.float64)
    return shown, haltwise.load(name).double(), problems


@pytest.mark.parametrize("name", ["regression-2d", "regression-2d-mode"])
def test_stops_are_those_of_an_execution(name: str) -> None:
    shown, model, problems = shown_of(name, "regression-2d", 6)
    stops = []
    for place in (0, 15, 30):
        price = torch.full((6,), shown["prices"][place], dtype=torch.float64)
        session = HaltingSession(model.policy(CostUnit.UPDATES), price, model.halting)
        run = run_until_halted(OptimizationProcess(model.rule, problems), session, HORIZON)
        at = [problem["at"][place] for problem in shown["items"]]
        returned = torch.tensor([each["returned"] for each in at])
        halted = run.outcome == Outcome.HALTED
        assert (returned == torch.where(halted, run.num_updates, HORIZON)).all()
        assert [bool(each["reason"]) for each in at] == halted.tolist()
        ended = [
            problem["path"][step] for problem, step in zip(shown["items"], returned, strict=True)
        ]
        torch.testing.assert_close(torch.tensor(ended, dtype=torch.float64), run.result)
        stops.append(returned.double().mean())
    assert stops[0] > stops[-1]  # the dearer, the earlier


@pytest.mark.parametrize("name", ["regression-2d", "regression-2d-mode"])
def test_outputs_are_those_of_a_session(name: str) -> None:
    shown, model, problems = shown_of(name, "regression-2d", 3)
    price = torch.full((3,), shown["prices"][20], dtype=torch.float64)
    policy = model.policy(CostUnit.UPDATES)
    session = HaltingSession(policy, price, model.halting)
    process = OptimizationProcess(model.rule, problems)
    state = process.init()
    for step in range(HORIZON):
        observation, state = process.step(step, state)
        outputs = session.observe(observation).observation.outputs
        gains = model.halting.method.forecast_gain(outputs, policy.rule, price) / price
        at = [problem["at"][20] for problem in shown["items"]]
        assert [each["forecast"][step] for each in at] == pytest.approx(gains.tolist(), rel=1e-4)
        if "hazard_logits" in outputs:
            hazards = outputs["hazard_logits"][:, 0].sigmoid().tolist()
            assert [each["hazard"][step] for each in at] == pytest.approx(hazards, rel=1e-4)
    assert all(sum(each["posterior"]) == pytest.approx(1, abs=1e-4) for each in at)


def test_contours_are_the_excess_loss() -> None:
    shown, _, problems = shown_of("regression-2d", "rosenbrock-2d", 1)
    (problem,) = shown["items"]
    contours, steepness = problem["contours"], problems.steepness.item()
    assert contours["minimizer"] == [1, 1]
    for row, second in enumerate(contours["y"]):
        for column, first in enumerate(contours["x"]):
            value = steepness * (second - first**2) ** 2 + (1 - first) ** 2
            if value > 1e-2:
                expected = torch.tensor(value).log10().item()
                assert contours["z"][row][column] == pytest.approx(expected, abs=1e-3)
    for place, axis in enumerate("xy"):
        for point in (*problem["path"], contours["minimizer"]):
            assert contours[axis][0] < point[place] < contours[axis][-1]


def page_of(model: haltwise.OptimizerModel, family: str, path: Path) -> str:
    drawn, name = tasks.family(family), "/home/someone/runs/mine"
    path = write_explorer(model, drawn, path, name=name, family_name=family, num_steps=HORIZON)
    return path.read_text(encoding="utf-8")


def test_problems_of_any_size_are_explored(tmp_path: Path) -> None:
    page = page_of(haltwise.load("regression-10d"), "regression-10d", tmp_path / "x.html")
    assert "<h1>mine on regression-10d</h1>" in page
    assert "/home/someone" not in page
    assert 'id="posterior"' in page
    assert 'id="path"' not in page


def test_methods_without_forecasts_are_explored(tmp_path: Path, monkeypatch: Any) -> None:
    model = haltwise.load("regression-2d")
    method = model.halting.method
    bare = SimpleNamespace(
        posterior=method.posterior,
        outputs=method.outputs,
        hazards=lambda outputs, time: None,
        forecast_gain=lambda outputs, rule, price: None,
    )
    monkeypatch.setattr(model.halting, "method", bare)
    page = page_of(model, "regression-2d", tmp_path / "x.html")
    assert 'id="posterior"' in page
    assert 'id="forecast"' not in page


def test_a_page_is_written_where_it_can_be(tmp_path: Path) -> None:
    """In a directory that is made, whatever the bytes of a name; where it cannot, that is first."""
    arguments = ("--family", "regression-2d", "--horizon", 2, "--num-problems", 1)
    done = in_process.haltwise("explore", *arguments, "--out", "new/x.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "file").write_text("")
    done = in_process.haltwise("explore", "unknown", "--out", "file/x.html", cwd=tmp_path)
    assert "cannot be written in; name another directory" in done.stderr
    page = write_page(tmp_path / "y.html", os.fsdecode(b"\xff"), [])
    assert "\\udcff" in page.read_text(encoding="utf-8")


def test_optimizers_that_never_stop_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained without halting"):
        page_of(haltwise.load("regression-2d-lstm"), "regression-2d", tmp_path / "x.html")


def test_the_model_shown_stays_as_it_is() -> None:
    model = haltwise.load("regression-2d")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explore(model, tasks.family("regression-2d"), stream(5, "x"), num_problems=1, num_steps=3)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
