"""`--preset thesis` is the thesis to the letter, on every family of its experiments and L2L's."""

import math

import pytest
import torch
from draws import DOUBLE, randn, seeded
from torch.testing import assert_close

from haltwise.halting import Softmax
from haltwise.models import Card, OptimizerModel
from haltwise.processes.signals import SIGNALS
from haltwise.stop_rules import CostUnit, DecisionTime, PosteriorMode, ReturnedIterate
from haltwise.training import TrainingSettings
from haltwise.update_rules import LSTMRule

B, D, T = 3, 4, 6
FAMILIES = ("regression-2d", "quadratic-10d", "mnist-mlp", "cifar10-cnn")
every_family = pytest.mark.parametrize("family", FAMILIES)


def settings_of(family: str) -> TrainingSettings:
    return TrainingSettings.from_preset("thesis", family)


def model_of(family: str) -> OptimizerModel:
    """A model of the preset in float64, none of whose weights is zero."""
    settings = settings_of(family)
    card = Card(
        method=settings.method,
        price=settings.price,
        price_range=settings.price_range,
        horizon=settings.horizon,
        rule=settings.rule,
        halter=settings.halter,
    )
    model = OptimizerModel(card, seeded()).double()
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight.add_(randn(*weight.shape, seed=index), alpha=0.2)
    return model


def lstm_of(model: OptimizerModel) -> LSTMRule:
    assert isinstance(model.rule, LSTMRule)
    return model.rule


@every_family
def test_the_update_is_linear_in_the_hidden_state_of_its_coordinate(family: str) -> None:
    """g = w^T h (Eq. 2), with neither a bias nor anything read of other coordinates."""
    rule = lstm_of(model_of(family))
    assert (rule.num_layers, rule.output_scale) == (2, 1.0)
    assert rule.readout_weight.shape == (1, rule.hidden_size)
    assert "readout_bias" not in dict(rule.named_parameters())
    state = rule.init(randn(B, D))
    for step in range(3):
        grad = randn(B, D, seed=step)
        update, _, after = rule.update(grad, state)
        top = after["hidden"][..., -1, :]
        assert_close(update, top @ rule.readout_weight[0], rtol=1e-12, atol=1e-14)
        grad[:, 0] += 1
        assert torch.equal(rule.update(grad, state).update[:, 1:], update[:, 1:])
        state = after


@every_family
def test_the_halter_is_a_linear_readout_of_the_pooled_hidden_state(family: str) -> None:
    """delta = w_q^T mean h + b (Eq. 11) beside the prior's log r: H + 1 parameters."""
    model = model_of(family)
    halter, size, price = model.halting.halter, lstm_of(model).hidden_size, model.card.price
    assert halter is not None
    assert sum(weight.numel() for weight in halter.parameters()) == size + 1
    readouts, prices = randn(B, T, size, seed=2), torch.full((B,), price, dtype=DOUBLE)
    signals = randn(B, T, len(SIGNALS), seed=3)
    found = model.halting(signals, readouts, prices)["increments"]
    expected = readouts @ halter.weights[0][0] + halter.biases[0] - price  # log r = -c
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    other_signals = model.halting(10 * signals, readouts, prices)["increments"]
    assert torch.equal(other_signals, found)


@every_family
def test_training_is_by_the_bound_at_one_drawn_horizon_alone(family: str) -> None:
    settings = settings_of(family)
    assert (settings.joint.warmup, settings.joint.sum_weight) == (0.0, 0.0)
    assert settings.joint.num_steps > 0
    assert settings.halting.num_steps == 0
    assert settings.price_range == 1.0
    method = model_of(family).halting.method
    assert method == Softmax(
        temperature=1.0,
        continuation=None,
        horizons="sampled",
        calibrated=False,
        before_gradient=False,
    )


@every_family
def test_it_stops_at_the_first_mode_with_nothing_calibrated(family: str) -> None:
    method = model_of(family).halting.method
    assert not method.needs_calibration
    rule, returns = method.policy(CostUnit.UPDATES)
    assert rule == PosteriorMode(DecisionTime.AFTER_GRADIENT, min_steps=0)
    assert returns is ReturnedIterate.CURRENT


def test_at_the_default_price_of_its_first_experiment_nu_is_nine_tenths() -> None:
    assert math.exp(-2 * settings_of("regression-2d").price) == pytest.approx(0.9, abs=1e-4)
