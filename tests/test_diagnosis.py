"""Each finding on a run that is broken on purpose, and none on those that ship."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import haltwise
from torch import nn

from haltwise import InputError, LearnedOptimizer, load
from haltwise.evaluation.diagnosis import diagnose
from haltwise.tasks import family
from haltwise.update_rules import LSTMRule

NAME = "regression-2d"


@pytest.fixture
def optimizer() -> LearnedOptimizer:
    return load(NAME)


def look(optimizer: LearnedOptimizer, **settings: Any) -> dict[str, Any]:
    drawn = family(optimizer.card["config"]["family"])
    return diagnose(optimizer, drawn, **{"num_problems": 64, **settings})


def names(report: dict[str, Any]) -> set[str]:
    for finding in report["findings"]:
        for sentence in (finding["measured"], finding["advice"]):
            assert sentence.endswith(".")
            assert "\n" not in sentence
    return {finding["name"] for finding in report["findings"]}


@pytest.mark.parametrize(
    "name", ["regression-2d", "regression-10d", "regression-2d-thesis", "quadratic-10d-lstm"]
)
def test_it_is_silent_about_what_ships(name: str) -> None:
    optimizer = load(name)
    before = copy.deepcopy(optimizer.state_dict())
    assert names(look(optimizer)) == set()
    assert all(torch.equal(value, before[key]) for key, value in optimizer.state_dict().items())
    assert all(not value.requires_grad for value in optimizer.parameters())
    assert all(value.grad is None for value in optimizer.parameters())


def test_a_price_far_from_the_losses(optimizer: LearnedOptimizer) -> None:
    ten = load("regression-10d")
    high = look(ten, price=1000 * ten.card["config"]["price"])
    assert "price above the losses" in names(high)
    assert high["scale"]["share_stopping_at_once"] > 0.9
    short = look(optimizer, horizon=2)
    assert "price below the losses" in names(short)


def test_saturated_gates(optimizer: LearnedOptimizer) -> None:
    rule = optimizer.rule
    assert isinstance(rule, LSTMRule)
    rule.weights[1].data.mul_(1000)
    report = look(optimizer)
    assert "saturated gates" in names(report)
    where = {f["where"] for f in report["findings"] if f["name"] == "saturated gates"}
    assert where <= {f"layer 1, {g} gate" for g in ("input", "forget", "candidate", "output")}
    assert len(where) == 4


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


def test_a_posterior_pushed_to_either_end_or_blind(optimizer: LearnedOptimizer) -> None:
    def push(by: float) -> LearnedOptimizer:
        pushed = copy.deepcopy(optimizer)
        pushed.head.biases[-1].data[2:4] += by
        return pushed

    early = look(push(1e4))
    assert "posterior collapsed to step 0" in names(early)
    assert early["posterior"]["at_step_0"] > 0.99
    assert early["posterior"]["mean_stop"] == 0
    late = look(push(-1e4))
    assert "posterior collapsed to the horizon" in names(late)
    assert late["posterior"]["mean_stop"] == 40
    blind = copy.deepcopy(optimizer)
    nn.init.zeros_(blind.head.weights[-1])
    blind.head.biases[-1].data[2:4] = -1.0
    blind.card = {**blind.card, "thresholds": [-2.0, -2.0]}
    assert "stops do not depend on the problem" in names(look(blind))


def test_no_descent_and_drift(optimizer: LearnedOptimizer) -> None:
    rule = optimizer.rule
    assert isinstance(rule, LSTMRule)
    backwards = copy.deepcopy(optimizer)
    backwards.rule.output_scale = -0.01  # type: ignore[attr-defined]
    assert "no descent" in names(look(backwards))
    drifting = _Drifting(rule, 40)
    optimizer.rule = drifting
    report = look(optimizer)
    assert "drift beyond the horizon" in names(report)
    assert report["drift"]["share_rising"] > 0.4  # it works against it


class _Drifting(LSTMRule):  # type: ignore[misc]
    """Goes wrong after the horizon, and not before."""

    def __init__(self, rule: LSTMRule, after: int) -> None:
        super().__init__(rule.hidden_size, rule.num_layers)
        self.load_state_dict(rule.state_dict())
        self.after, self.calls = after, 0

    def prepare(self) -> "_Drifting":
        return self  # a copy would count for itself

    def update(self, grad: torch.Tensor, state: Any) -> Any:
        return self._later(super().update(grad, state))

    def update_(self, grad: torch.Tensor, state: Any) -> Any:
        return self._later(super().update_(grad, state))

    def _later(self, step: Any) -> Any:
        self.calls += 1
        wrong = self.calls > 2 * self.after  # the unroll comes first, then the longer walk
        return step._replace(update=step.update + 1.0) if wrong else step


def test_gradients_that_vanish_or_are_not_finite(optimizer: LearnedOptimizer) -> None:
    rule = optimizer.rule
    assert isinstance(rule, LSTMRule)
    dead = copy.deepcopy(optimizer)
    dict(dead.named_parameters())["rule.readout_weight"].data.zero_()
    dead.head.weights[0].data.zero_()
    report = look(dead)
    where = {f["where"] for f in report["findings"] if f["name"] == "vanishing gradient"}
    assert {"rule.weights.0", "rule.weights.1"} <= where
    rule.output_scale = 1e30
    report = look(optimizer)
    assert "not finite" in names(report)
    assert report["num_nonfinite"] > 0


def test_the_layers_say_what_the_weights_are(optimizer: LearnedOptimizer) -> None:
    report = look(optimizer)
    for layer in report["layers"]:
        value = dict(optimizer.named_parameters())[layer["name"]]
        rms = math.sqrt(value.square().sum().item() / value.numel())
        assert layer["weight_rms"] == pytest.approx(rms, rel=1e-5)
        assert layer["gradient_rms"] > 0
    assert report["groups"][0]["num_parameters"] == 2


def test_the_command_prints_findings_and_writes_figures(tmp_path: Path) -> None:
    done = haltwise("diagnose", NAME, "--num-problems", 32, "--threads", 1, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "Nothing is wrong."
    options = ["--price", 1e6, "--json", "x.json", "--num-problems", 32]
    done = haltwise("diagnose", NAME, *options, cwd=tmp_path)
    assert done.returncode == 0
    found = json.loads((tmp_path / "x.json").read_text())
    for finding in found["findings"]:
        assert finding["advice"] in done.stdout
    assert found["scale"]["share_stopping_at_once"] == 1
    network = haltwise(
        "diagnose", NAME, "--family", "digits-mlp", "--horizon", 3, "--json", "y.json", cwd=tmp_path
    )
    assert network.returncode == 0
    groups = json.loads((tmp_path / "y.json").read_text())["groups"]
    assert sum(group["num_parameters"] for group in groups) == family("digits-mlp").dim
    assert len(groups) == 4  # two layers, a weight and a bias each


def test_bad_input(optimizer: LearnedOptimizer) -> None:
    for settings, sentence in (
        ({"price": 0.0}, "price must be above 0"),
        ({"horizon": 1}, "horizon must be at least 2"),
        ({"num_problems": 3}, "num_problems must be at least 8"),
    ):
        with pytest.raises(InputError, match=sentence):
            look(optimizer, **settings)
    drawn = family(NAME)
    optimizer.card = {}
    with pytest.raises(InputError, match="no card"):
        diagnose(optimizer, drawn)
