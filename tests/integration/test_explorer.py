"""What the explorer shows is what an execution does, problem by problem and price by price."""

from pathlib import Path

import pytest
import torch
from in_process import haltwise as command

import haltwise
from haltwise import InputError, Outcome, tasks
from haltwise._core.plugins import load_object
from haltwise._core.random import stream
from haltwise.halting import HaltingMethod
from haltwise.halting.session import HaltingSession
from haltwise.models import Card, Choice, OptimizerModel
from haltwise.models.loading import find
from haltwise.processes import OptimizationProcess
from haltwise.report import write_explorer
from haltwise.report.explorer import explore
from haltwise.rollout import run_until_halted
from haltwise.stop_rules import CostUnit, DecisionTime

HORIZON = 12
FAMILY = tasks.family("regression-2d")


@pytest.mark.parametrize("name", ["regression-2d", "regression-2d-mode", "regression-2d-thesis"])
def test_stops_are_those_of_an_execution(name: str) -> None:
    shown = explore(haltwise.load(name), FAMILY, stream(5, "x"), num_problems=6, num_steps=HORIZON)
    model = haltwise.load(name).double()
    problems = FAMILY.sample(6, stream(5, "x"), dtype=torch.float64)
    stops = []
    for place in (0, len(shown["prices"]) // 2, len(shown["prices"]) - 1):
        price = torch.full((6,), shown["prices"][place], dtype=torch.float64)
        session = HaltingSession(model.policy(CostUnit.UPDATES), price, model.halting)
        run = run_until_halted(OptimizationProcess(model.rule, problems), session, HORIZON)
        at = [problem["at"][place] for problem in shown["problems"]]
        halted = run.outcome == Outcome.HALTED
        returned = torch.tensor([each["returned"] for each in at])
        assert (returned == torch.where(halted, run.num_updates, HORIZON)).all()
        assert [bool(each["reason"]) for each in at] == halted.tolist()
        ended = [
            problem["path"][each["returned"]]
            for problem, each in zip(shown["problems"], at, strict=True)
        ]
        torch.testing.assert_close(torch.tensor(ended, dtype=torch.float64), run.result)
        stops.append(returned.double().mean())
    assert stops[0] >= stops[-1]  # the dearer, the earlier


def test_the_halting_model_is_quoted_step_by_step() -> None:
    shown = explore(
        haltwise.load("regression-2d"), FAMILY, stream(6, "x"), num_problems=3, num_steps=HORIZON
    )
    model = haltwise.load("regression-2d").double()
    process = OptimizationProcess(model.rule, FAMILY.sample(3, stream(6, "x"), dtype=torch.float64))
    state, place = process.init(), 14
    price = torch.full((3,), shown["prices"][place], dtype=torch.float64)
    policy = model.policy(CostUnit.UPDATES)
    session, method = HaltingSession(policy, price, model.halting), model.halting.method
    left = torch.ones(3, dtype=torch.float64)
    for step in range(HORIZON):
        observation, after = process.step(step, state)
        outputs = session.observe(observation).observation.outputs
        hazard = outputs["hazard_logits"][:, DecisionTime.AFTER_GRADIENT].sigmoid()
        forecast = method.forecast_gain(outputs, policy.rule, price)
        assert forecast is not None
        for number, problem in enumerate(shown["problems"]):
            at = problem["at"][place]
            assert at["hazard"][step] == pytest.approx(hazard[number].item(), abs=6e-4)
            expected = forecast[number].item() / price[number].item()
            assert at["forecast"][step] == pytest.approx(expected, abs=6e-4)
            assert problem["path"][step] == pytest.approx(process.result(state)[number].tolist())
            # With the horizon at the present step, what is left falls on it.
            law = at["posterior"][step]
            assert len(law) == step + 1
            assert sum(law) == pytest.approx(1, abs=2e-2)
            assert law[step] == pytest.approx(left[number].item(), abs=6e-4)
        left = left * (1 - hazard)
        state = after


def test_contours_are_the_excess_loss() -> None:
    family = tasks.family("rosenbrock-2d")
    model = haltwise.load("regression-2d")
    shown = explore(model, family, stream(7, "x"), num_problems=1, num_steps=HORIZON)
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


def test_a_method_of_ones_own_is_shown_with_its_own_law(tmp_path: Path) -> None:
    name = f"{Path(__file__).parents[1] / 'own' / 'own_method.py'}:AlwaysThird"
    own = load_object(name, HaltingMethod, "halting method")
    policies = {unit: own().policy(unit) for unit in CostUnit}
    rule = Choice("sgd", {"learning_rate": 0.001})
    card = Card(Choice(name), 0.1, HORIZON, rule=rule, policies=policies)
    model = OptimizerModel(card, stream(0), own=[own]).requires_grad_(False)
    shown = explore(model, FAMILY, stream(8, "x"), num_problems=2, num_steps=HORIZON)
    for problem in shown["problems"]:
        for at in problem["at"]:
            assert (at["stop"], at["returned"]) == (3, 3)
            assert at["reason"] == "the third step is always the last"
            assert at["hazard"] is None
            assert at["forecast"] is None
            assert at["posterior"][7] == [0, 0, 0, 1, 0, 0, 0, 0]
    page = write_explorer(
        model, FAMILY, tmp_path / "x.html", name="mine", family_name="f", num_problems=1
    )
    assert 'id="forecast"' not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("regression-10d", "regression-10d", "2 parameters can be drawn, these have 10"),
        ("regression-2d-lstm", "regression-2d", "trained without halting"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    name: str, family: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=expected):
        write_explorer(
            haltwise.load(name),
            tasks.family(family),
            tmp_path / "x.html",
            name=name,
            family_name=family,
        )


def test_the_command_names_models_and_families_without_their_places(tmp_path: Path) -> None:
    weights = tmp_path / "runs" / "mine" / "best.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(find("regression-2d").read_bytes())
    options = ["--num-problems", 1, "--horizon", 4, "--family", "rosenbrock-2d"]
    done = command("explore", weights, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "explore.html").read_text(encoding="utf-8")
    assert "<h1>mine on rosenbrock-2d</h1>" in page
    assert str(tmp_path) not in page
