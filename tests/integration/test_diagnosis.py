"""Each finding on a model that is broken on purpose, and none on those that ship."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import haltwise
from torch import nn

from haltwise import InputError, OptimizerModel, load
from haltwise._core.json import from_json, to_json
from haltwise._core.random import stream
from haltwise.evaluation.diagnosis import Diagnosis, diagnose
from haltwise.halting import Halter
from haltwise.models import Choice
from haltwise.rollout import record
from haltwise.stop_rules import (
    CostUnit,
    DecisionTime,
    HazardThreshold,
    Plateau,
    ReturnedIterate,
    StopPolicy,
    decisions,
)
from haltwise.tasks import family
from haltwise.update_rules import LSTMRule, State, UpdateRule, UpdateStep

NAME = "regression-2d"


@pytest.fixture
def model() -> OptimizerModel:
    return load(NAME)


def look(model: OptimizerModel, **settings: Any) -> Diagnosis:
    assert model.card.family is not None
    return diagnose(model, family(model.card.family.name), **{"num_problems": 64, **settings})


def names(found: Diagnosis) -> set[str]:
    for finding in found.findings:
        for sentence in (finding.measured, finding.advice):
            assert sentence.endswith(".")
            assert "\n" not in sentence
    return {finding.name for finding in found.findings}


def halter_of(model: OptimizerModel) -> Halter:
    assert model.halting.halter is not None
    return model.halting.halter


@pytest.mark.parametrize(
    "name", ["regression-2d", "regression-10d", "regression-2d-mode", "quadratic-10d-lstm"]
)
def test_it_is_silent_about_what_ships(name: str) -> None:
    model = load(name)
    before = copy.deepcopy(model.state_dict())
    assert names(look(model)) == set()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(not value.requires_grad for value in model.parameters())
    assert all(value.grad is None for value in model.parameters())


def test_a_price_far_from_the_losses(model: OptimizerModel) -> None:
    ten = load("regression-10d")
    high = look(ten, price=1000 * ten.card.price)
    assert "price above the losses" in names(high)
    assert high.figures["share best stopped within a step"] > 0.9
    assert "price below the losses" in names(look(model, horizon=2))


@pytest.mark.parametrize("times", [0.05, 20.0])
def test_a_price_that_it_was_not_trained_at(times: float, model: OptimizerModel) -> None:
    card = model.card
    for price in (card.price * card.price_range, card.price / card.price_range):
        assert "price not trained at" not in names(look(model, price=price))
    found = look(model, price=times * card.price)
    (said,) = (each for each in found.findings if each.name == "price not trained at")
    assert said.measured == (
        f"It was trained at prices from 0.00527 to 0.527; at {times * card.price:.3g} it stops as "
        "at the nearest that it knows."
    )
    rule = load("regression-2d-lstm")  # it does not stop
    assert "price not trained at" not in names(look(rule, price=times * card.price))


def test_saturated_gates(model: OptimizerModel) -> None:
    rule = model.rule
    assert isinstance(rule, LSTMRule)
    rule.weights[1].data.mul_(1000)
    found = look(model)
    assert "saturated gates" in names(found)
    where = {each.where for each in found.findings if each.name == "saturated gates"}
    assert where == {f"layer 1, {g} gate" for g in ("input", "forget", "candidate", "output")}


def test_gate_logits_are_what_the_cell_applies_its_nonlinearities_to() -> None:
    """Oracle: `nn.LSTMCell` of the same weights, gates made from the logits by hand."""
    rule = LSTMRule(5, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    state = rule.init(grad)
    for _ in range(3):
        logits = rule.gate_logits(grad, state)
        assert logits.shape == (3, 4, 2, 4, 5)
        enter, forget, candidate, leave = logits.unbind(-2)
        cell = forget.sigmoid() * state["cell"] + enter.sigmoid() * candidate.tanh()
        with torch.no_grad():
            state = rule.update(grad, state).state
        torch.testing.assert_close(cell, state["cell"])
        torch.testing.assert_close(leave.sigmoid() * cell.tanh(), state["hidden"])


def test_a_posterior_pushed_to_either_end_or_blind(model: OptimizerModel) -> None:
    def push(by: float) -> OptimizerModel:
        pushed = copy.deepcopy(model)
        halter_of(pushed).biases[-1].data[:2] += by  # of the hazards
        return pushed

    early = look(push(1e4))
    assert "posterior collapsed to step 0" in names(early)
    assert early.figures["posterior at step 0"] > 0.99
    assert early.figures["stop, mean"] == 0
    late = look(push(-1e4))
    assert "posterior collapsed to the horizon" in names(late)
    assert late.figures["stop, mean"] == 40
    blind = copy.deepcopy(model)
    nn.init.zeros_(halter_of(blind).weights[-1])
    halter_of(blind).biases[-1].data[:2] = 1.0
    policy = StopPolicy(HazardThreshold(-2.0), ReturnedIterate.CURRENT)
    blind.halting.card = replace(model.card, policies={CostUnit.UPDATES: policy})
    assert "stops do not depend on the problem" in names(look(blind))


def test_the_law_is_that_of_the_models_own_method(model: OptimizerModel) -> None:
    """A hazard's and a softmax' law of the same steps differ; each shows its own."""
    batch = family(NAME)
    softmax = load("regression-2d-mode")
    found = diagnose(softmax, batch, num_problems=64)
    assert found.figures["posterior at step 0"] != pytest.approx(
        diagnose(model, batch, num_problems=64).figures["posterior at step 0"]
    )
    graves = OptimizerModel(replace(model.card, method=Choice("graves"), policies={}))
    shown = diagnose(graves, batch, num_problems=64).figures
    assert shown["posterior at step 0"] == pytest.approx(1 / (1 + math.exp(2)), abs=1e-4)


def test_no_descent_and_drift(model: OptimizerModel) -> None:
    rule = model.rule
    assert isinstance(rule, LSTMRule)
    backwards = copy.deepcopy(model)
    backwards.rule.output_scale = -0.01  # type: ignore[attr-defined]
    assert "no descent" in names(look(backwards))
    model.rule = _Drifting(rule, 40)
    found = look(model)
    assert "drift beyond the horizon" in names(found)
    assert found.figures["share that rises beyond the horizon"] > 0.4  # it works against it


class _Drifting(UpdateRule, nn.Module):
    """Moves as another rule does, but goes wrong after so many steps."""

    def __init__(self, rule: LSTMRule, after: int) -> None:
        nn.Module.__init__(self)
        self.rule, self.after = rule, after

    @property
    def readout_size(self) -> int:
        return self.rule.readout_size

    def init(self, params: torch.Tensor) -> State:
        steps = torch.zeros(len(params), dtype=torch.int64)
        return {"steps": steps, **self.rule.init(params)}

    def update(self, grad: torch.Tensor, state: State) -> UpdateStep:
        inner = {name: value for name, value in state.items() if name != "steps"}
        update, readout, after = self.rule.update(grad, inner)
        wrong = (state["steps"] >= self.after).unsqueeze(1)
        return UpdateStep(update + wrong, readout, {"steps": state["steps"] + 1, **after})


def test_gradients_that_vanish_or_are_not_finite(model: OptimizerModel) -> None:
    rule = model.rule
    assert isinstance(rule, LSTMRule)
    dead = copy.deepcopy(model)
    dict(dead.named_parameters())["rule.readout_weight"].data.zero_()
    halter_of(dead).weights[0].data.zero_()
    found = look(dead)
    where = {each.where for each in found.findings if each.name == "vanishing gradient"}
    assert {"rule.weights.0", "rule.weights.1"} <= where
    rule.output_scale = 1e30
    found = look(model)
    assert "not finite" in names(found)
    assert found.figures["share not finite"] > 0


def test_a_policy_that_is_worse_than_simple_rules(model: OptimizerModel) -> None:
    """Those of the thesis; and a threshold that is never reached, beside which all are better."""
    thesis = look(load("regression-2d-thesis"), num_problems=128)
    assert names(thesis) == {"a simple rule stops better"}
    assert "with the rule logistic." in thesis.findings[0].measured
    never = StopPolicy(HazardThreshold(1e6, DecisionTime.BEFORE_GRADIENT), ReturnedIterate.NEXT)
    policies = {**model.card.policies, CostUnit.GRADIENTS: never}
    model.halting.card = replace(model.card, policies=policies)
    found = look(model)
    assert "a simple rule stops better" in names(found)
    assert found.figures["J in prices, its own stops"] > 40  # all the steps, at least
    batch = family(NAME).sample(256, stream(0, "diagnose", "stops"))
    trajectory, price = record(model.rule, batch, 40), model.card.price
    steps = decisions(Plateau(price), trajectory)
    excess = trajectory.excess.gather(1, (steps + 1).clamp_max(40).unsqueeze(1)).squeeze(1)
    untuned = (excess / price + (steps + 1).clamp_max(40)).double().mean().item()
    figure = found.figures["J in prices, last improvement below the price"]
    assert figure == pytest.approx(untuned, rel=1e-5)


def test_the_layers_say_what_the_weights_are(model: OptimizerModel) -> None:
    figures = look(model).figures
    for name, value in model.named_parameters():
        rms = math.sqrt(value.square().sum().item() / value.numel())
        assert figures[f"{name}: rms weight"] == pytest.approx(rms, rel=1e-5)
        assert figures[f"{name}: rms meta-gradient"] > 0


def test_the_command_prints_findings_and_writes_figures(tmp_path: Path) -> None:
    done = haltwise("diagnose", NAME, "--num-problems", 32, "--threads", 1, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "Nothing is wrong."
    options = ["--price", 1e6, "--json", "x.json", "--num-problems", 32]
    done = haltwise("diagnose", NAME, *options, cwd=tmp_path)
    assert done.returncode == 0
    document = json.loads((tmp_path / "x.json").read_text())
    found = from_json(Diagnosis, document)
    assert to_json(found) == document
    for finding in found.findings:
        assert finding.advice in done.stdout
    assert found.figures["share best stopped within a step"] == 1
    options = ["--family", "digits-mlp", "--horizon", 3, "--json", "y.json"]
    network = haltwise("diagnose", NAME, *options, cwd=tmp_path)
    assert network.returncode == 0
    figures = json.loads((tmp_path / "y.json").read_text())["figures"]
    groups = [name for name in figures if name.endswith("rms gradient, step 0")]
    assert len(groups) == 4  # two layers, a weight and a bias each


def test_bad_input(model: OptimizerModel) -> None:
    for settings, sentence in (
        ({"price": 0.0}, "price must be a finite number above 0"),
        ({"horizon": 1}, "horizon must be at least 2"),
        ({"num_problems": 3}, "num_problems must be at least 8"),
    ):
        with pytest.raises(InputError, match=sentence):
            look(model, **settings)
