"""What the explorer shows is what an execution does, problem by problem and price by price."""

from pathlib import Path

import pytest
import torch
from haltwise.stop_rules.accounts import CostUnit

import haltwise
from haltwise import InputError, tasks
from haltwise._core.random import stream
from haltwise.halting.halter import AFTER
from haltwise.report import write_explorer
from haltwise.report.explorer import explore
from haltwise.rollout.early_exit import execute

HORIZON = 12


@pytest.mark.parametrize("name", ["regression-2d", "regression-2d-mode"])
def test_stops_are_those_of_an_execution(name: str) -> None:
    family = tasks.family("regression-2d")
    shown = explore(haltwise.load(name), family, stream(5, "x"), num_problems=6, num_steps=HORIZON)
    optimizer = haltwise.load(name).double()
    problems = family.sample(6, stream(5, "x"), dtype=torch.float64)
    stops = []
    for place in (0, 15, 30):
        price = torch.full((6,), shown["prices"][place], dtype=torch.float64)
        run = execute(optimizer, problems, optimizer.policy(CostUnit.UPDATES), price, HORIZON)
        at = [problem["at"][place] for problem in shown["problems"]]
        halted = run.outcome == haltwise.Outcome.HALTED
        returned = torch.tensor([each["returned"] for each in at])
        assert (returned == torch.where(halted, run.num_updates, HORIZON)).all()
        ended = torch.stack(
            [
                torch.tensor(problem["path"], dtype=torch.float64)[each["returned"]]
                for problem, each in zip(shown["problems"], at, strict=True)
            ]
        )
        torch.testing.assert_close(ended, run.params)
        stops.append(returned.double().mean())
    assert stops[0] > stops[-1]  # the dearer, the earlier


def test_the_head_is_quoted_step_by_step() -> None:
    family = tasks.family("regression-2d")
    optimizer = haltwise.load("regression-2d")
    shown = explore(optimizer, family, stream(6, "x"), num_problems=3, num_steps=HORIZON)
    optimizer = haltwise.load("regression-2d").double()
    problems = family.sample(3, stream(6, "x"), dtype=torch.float64)
    price = torch.full((3,), shown["prices"][20], dtype=torch.float64)
    params, state = problems.start, optimizer.init(problems.start)
    for step in range(HORIZON):
        loss, grad = problems.observe(params, step)
        update, halting, state = optimizer.step(step, loss, grad, price, state)
        for place, problem in enumerate(shown["problems"]):
            at = problem["at"][20]
            hazard = halting.hazard_logits[place, AFTER].sigmoid().item()
            forecast = halting.increments[place, AFTER].item()  # tau is the price here
            assert at["hazard"][step] == pytest.approx(hazard)
            assert at["forecast"][step] * at["prices_per_temperature"] == pytest.approx(forecast)
            assert problem["path"][step] == pytest.approx(params[place].tolist())
        params = params + update


def test_contours_are_the_excess_loss() -> None:
    family = tasks.family("rosenbrock-2d")
    optimizer = haltwise.load("regression-2d")
    shown = explore(optimizer, family, stream(7, "x"), num_problems=1, num_steps=HORIZON)
    steepness = family.sample(1, stream(7, "x"), dtype=torch.float64).steepness.item()  # type: ignore[attr-defined]
    contours = shown["problems"][0]["contours"]
    assert contours["minimizer"] == [1, 1]
    for row, second in enumerate(contours["y"]):
        for column, first in enumerate(contours["x"]):
            value = steepness * (second - first**2) ** 2 + (1 - first) ** 2
            if value > 1e-2:
                expected = torch.tensor(value).log10().item()
                assert contours["z"][row][column] == pytest.approx(expected, abs=6e-3)
    for place, axis in enumerate("xy"):
        for point in (*shown["problems"][0]["path"], contours["minimizer"]):
            assert contours[axis][0] < point[place] < contours[axis][-1]


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("regression-10d", "regression-10d", "2 parameters can be drawn, these have 10"),
        ("regression-2d-lstm", "regression-2d", "needs a halting head"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    name: str, family: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=expected):
        write_explorer(name, tasks.family(family), tmp_path / "x.html", family_name=family)
