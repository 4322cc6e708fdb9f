"""What update rule and halter are trained by together."""

import math

import pytest
import torch
from draws import DOUBLE, randn, seeded
from halting_examples import EXCESS, PRICE, B, T, objective, outputs
from torch.testing import assert_close

from haltwise.halting import HaltingMethod, Softmax, StickBreaking
from haltwise.halting.objectives import LOSSES_OF_STEPS, cumulative_logits, halting_bound
from haltwise.halting.priors import HorizonPrior
from haltwise.models import Card, Choice, HaltingModel
from haltwise.processes.signals import SIGNALS
from haltwise.training.phases import MetaObjective


def meta_objective(method: str) -> MetaObjective:
    model = HaltingModel(Card(method=Choice(method), price=0.3, horizon=T), 2, seeded()).double()
    return MetaObjective(model, price=0.3, losses="mean", sum_weight=0.3)


def test_losses_may_count_by_their_logarithms() -> None:
    """Of losses above the price; those below 0, where a reference is beaten, count as 0."""
    losses = EXCESS.clone()
    losses[0, 2] = -1.0
    found = LOSSES_OF_STEPS["log"](losses, 0.3)
    expected = [
        sum(math.log(1 + max(loss, 0) / 0.3) for loss in row[1:]) / T for row in losses.tolist()
    ]
    assert_close(found, torch.tensor(expected, dtype=DOUBLE), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("name", "method"), [("stick-breaking", StickBreaking()), ("graves", None), ("softmax", None)]
)
def test_rule_and_halter_are_paid_for_together(name: str, method: HaltingMethod | None) -> None:
    """The mean loss over steps 1..T, in default prices, beside the method's own objective."""
    meta = meta_objective(name)
    mean = EXCESS[:, 1:].mean(1) / 0.3
    assert_close(meta.losses(EXCESS), mean, rtol=1e-13, atol=0)
    halting = meta.halting(EXCESS, outputs(), PRICE, None, seeded())
    if method is not None:
        assert torch.equal(halting, objective(method, progress=None))
    found = meta.joint(EXCESS, outputs(), PRICE, seeded())
    assert_close(found, halting + 0.3 * mean, rtol=1e-13, atol=0)


def test_without_halting_the_mean_loss_is_all() -> None:
    meta = meta_objective("none")
    found = meta.joint(EXCESS, {}, PRICE, seeded())
    assert torch.equal(found, meta.losses(EXCESS))


def test_a_method_that_asks_for_it_gets_what_is_put_out_before_step_0() -> None:
    """A new halter puts out the prior there; the increments before the gradient begin with it."""
    meta = meta_objective("softmax")
    first = Softmax().outputs(torch.zeros(B, 2, dtype=DOUBLE), PRICE)
    given = objective(Softmax(), initial=first["increments"])
    found = meta.halting(EXCESS, outputs(), PRICE, 1.0, seeded())
    assert_close(found, given, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["stick-breaking", "graves"])
def test_a_new_halter_goes_on_for_about_eight_steps(name: str) -> None:
    """It stops with probability 1 / (1 + e^2) at every step and price, and takes every update."""
    model = HaltingModel(Card(method=Choice(name), price=0.3, horizon=T), 0, seeded())
    signals = randn(B, T, len(SIGNALS)).float().abs()
    found = model(signals, signals.new_empty(B, T, 0), PRICE.float())
    for value in found.values():
        assert_close(value, torch.full_like(value, -2.0))
    assert 1 + math.exp(2.0) == pytest.approx(8.4, abs=0.1)


def test_horizons_are_those_of_the_prior_with_continuation_nine_tenths() -> None:
    """Whatever the price, E[T] = 27.5, unless a setting says otherwise."""
    prior = HorizonPrior(torch.tensor(0.9, dtype=DOUBLE))
    mean = (prior.weights(1000) * torch.arange(1001)).sum()
    assert mean.item() == pytest.approx(27.5, abs=0.1)
    logits = cumulative_logits(outputs()["increments"][..., 0])
    weights = prior.weights(T)
    own = halting_bound(EXCESS, logits, price=PRICE)
    assert_close(own, halting_bound(EXCESS, logits, price=PRICE, horizon_weights=weights))
    assert_close(objective(Softmax()), objective(Softmax(continuation=0.9)), rtol=0, atol=0)
    assert not torch.equal(objective(Softmax()), objective(Softmax(continuation=0.8)))
