"""What every halting method must satisfy: those of the table, in their settings, on models."""

import json
from dataclasses import asdict

import pytest
import torch
from descents import PRICE, B, D, T, measured
from draws import DOUBLE, randn, seeded

from haltwise import InputError
from haltwise.halting import (
    Graves,
    GravesPosterior,
    HaltingMethod,
    NoHalting,
    Softmax,
    StickBreaking,
    halting_methods,
)
from haltwise.models import Card, Choice, HaltingModel
from haltwise.stop_rules import CostUnit, DecisionTime, PosteriorMode, ReturnedIterate
from haltwise.testing import check_halting_method

HOLD = ("hold_logits",)  # distilled and forecast hazards take what is returned as data
VARIANTS: dict[str, tuple[HaltingMethod, tuple[str, ...]]] = {
    **{name: (kind(), ()) for name, kind in halting_methods().items()},
    "distillation": (StickBreaking("distillation"), HOLD),
    "value": (StickBreaking("value"), HOLD),
    "at a constant temperature": (StickBreaking(temperature=2.0, final_temperature=2.0), ()),
    "the thesis'": (
        Softmax(temperature=1.0, continuation=None, horizons="sampled", before_gradient=False),
        (),
    ),
    "a temperature of its own": (Softmax(temperature_per_price=3.0, continuation=0.5), ()),
    "an early halt": (Graves(0.4), ()),
}
every_method = pytest.mark.parametrize("name", VARIANTS)


@every_method
def test_a_method_keeps_its_contract(name: str) -> None:
    method, detached = VARIANTS[name]
    check_halting_method(method, detached=detached)


@every_method
def test_a_model_of_it_puts_out_the_same_step_by_step_as_at_once(name: str) -> None:
    method, _ = VARIANTS[name]
    kinds = {kind: table_name for table_name, kind in halting_methods().items()}
    choice = Choice(kinds[type(method)], json.loads(json.dumps(asdict(method))))
    model = HaltingModel(Card(choice, price=0.1, horizon=T), 2, seeded()).double()
    assert model.method == method
    assert model.halts == (method.num_outputs > 0)
    for index, weight in enumerate(model.parameters()):
        weight.data += 0.3 * randn(*weight.shape, seed=index)
    signals = measured(randn(B, T), randn(B, T, D, seed=2), randn(B, T, D, seed=3))
    readouts = randn(B, T, 2, seed=4)
    whole, state = model(signals, readouts, PRICE), model.init(B, signals)
    assert list(whole) == list(method.output_sizes)
    assert model.initial(PRICE).keys() == whole.keys()
    for step in range(T):
        outputs, state = model.step(signals[:, step], readouts[:, step], PRICE, state)
        assert outputs.keys() == whole.keys()
        for output, value in outputs.items():
            torch.testing.assert_close(value, whole[output][:, step], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [StickBreaking(), Graves()])
def test_a_new_halter_goes_on_for_about_eight_steps(method: HaltingMethod) -> None:
    raw = torch.zeros(2, 30, method.num_outputs, dtype=DOUBLE)
    outputs = method.outputs(raw, torch.ones(2, dtype=DOUBLE))
    assert all(bool((value == -2).all()) for value in outputs.values())
    posterior = method.posterior(outputs, DecisionTime.AFTER_GRADIENT)
    if isinstance(posterior, GravesPosterior):
        assert posterior.halting_step().tolist() == [8, 8]
    else:
        mean = (posterior.log_prob().exp() * torch.arange(31)).sum(1)
        assert 7 < mean[0] < 8


def test_outputs_are_split_in_the_order_of_their_sizes() -> None:
    raw = torch.arange(6.0).view(2, 3)
    assert StickBreaking().split(raw)["hazard_logits"].tolist() == [[0, 1], [3, 4]]
    assert StickBreaking().split(raw)["hold_logits"].tolist() == [2, 5]
    assert NoHalting().split(raw) == {}


def test_policies_differ_by_what_is_paid_for() -> None:
    policies = {
        kind: {unit: kind().policy(unit) for unit in CostUnit}
        for kind in (StickBreaking, Softmax, Graves)
    }
    for kind, of_kind in policies.items():
        updates, gradients = of_kind[CostUnit.UPDATES], of_kind[CostUnit.GRADIENTS]
        assert getattr(updates.rule, "time", None) is DecisionTime.AFTER_GRADIENT
        assert getattr(gradients.rule, "time", None) is DecisionTime.BEFORE_GRADIENT
        assert updates.returns is ReturnedIterate.CURRENT
        learned = kind is StickBreaking
        assert (gradients.returns is ReturnedIterate.LEARNED) == learned
        assert (gradients.returns is ReturnedIterate.NEXT) != learned


def test_one_increment_decides_with_the_gradient_in_hand_whatever_is_paid_for() -> None:
    policies = [Softmax(before_gradient=False).policy(unit) for unit in CostUnit]
    assert [policy.rule for policy in policies] == 2 * [PosteriorMode(DecisionTime.AFTER_GRADIENT)]
    assert [policy.returns for policy in policies] == [
        ReturnedIterate.CURRENT,
        ReturnedIterate.NEXT,
    ]


def test_a_method_without_halting_says_what_to_do_instead() -> None:
    with pytest.raises(InputError, match=r"trained without halting; .*FixedBudget"):
        NoHalting().policy(CostUnit.UPDATES)
