"""What update rule and halter are trained by together."""

import pytest
import torch
from draws import DOUBLE, seeded
from halting_examples import EXCESS, PRICE, B, T, objective, outputs
from torch.testing import assert_close

from haltwise.halting import HaltingMethod, Softmax, StickBreaking
from haltwise.models import Card, Choice, HaltingModel
from haltwise.training.objective import MetaObjective


def meta_objective(method: str) -> MetaObjective:
    model = HaltingModel(Card(method=Choice(method), price=0.3, horizon=T), 2, seeded()).double()
    return MetaObjective(model, horizon=T, price=0.3, sum_weight=0.3)


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
