"""Cards: all that a model's use depends on survives JSON, and nothing impossible gets in."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from random_models import random_model
from stop_rule_cases import KINDS, Drawn, any_rule, settings
from torch import Tensor

from haltwise import InputError
from haltwise.halting import HalterSettings
from haltwise.models import Card, Choice, fingerprint
from haltwise.processes import StepObservation
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    FixedBudget,
    Patience,
    ReturnedIterate,
    StopPolicy,
    StopRule,
)

FULL = Card(
    method=Choice("stick-breaking", {"learn_by": "value"}),
    price=0.1,
    horizon=40,
    rule=Choice("lstm", {"hidden_size": 3}),
    halter=HalterSettings(width=5, memory=0, features="optimization", readout=False),
    price_range=3.0,
    policies={CostUnit.UPDATES: StopPolicy(Patience(3, 0.1), ReturnedIterate.BEST)},
    unit=CostUnit.UPDATES,
    observed="loss",
    keeps_best=True,
    family=Choice("regression-2d", {}),
    provenance={"command": "haltwise train regression-2d", "metrics": {"mean_loss": 1.5}},
)


def through_json(card: Card, own: tuple[type, ...] = ()) -> Card:
    return Card.from_json(json.loads(json.dumps(card.to_json())), own)


def test_a_card_survives_json() -> None:
    assert through_json(FULL) == FULL
    assert through_json(replace(FULL, rule=None, family=None, policies={})).rule is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_stop_rule_survives_json(kind: type[StopRule]) -> None:
    for rule in settings(kind):
        policies = {
            unit: StopPolicy(rule, returns)
            for unit, returns in ((unit, RETURNABLE[unit][-1]) for unit in CostUnit)
        }
        assert through_json(replace(FULL, policies=policies), (Drawn,)).policies == policies


@given(rule=any_rule)
def test_composed_stop_rules_survive_json(rule: StopRule) -> None:
    policies = {CostUnit.GRADIENTS: StopPolicy(rule, ReturnedIterate.NEXT)}
    assert through_json(replace(FULL, policies=policies), (Drawn,)).policies == policies


@dataclass(frozen=True)
class Never(StopRule):
    """A rule of the caller's own."""

    reason: str = "never"

    def step(
        self, observation: StepObservation, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return observation.loss < observation.loss, memory


@pytest.mark.parametrize("rule", [Never("x"), Never("x") | FixedBudget(3)])
def test_a_stop_rule_of_ones_own_must_be_brought(rule: StopRule) -> None:
    card = replace(FULL, policies={CostUnit.UPDATES: StopPolicy(rule, ReturnedIterate.BEST)})
    assert through_json(card, own=(Never,)) == card
    with pytest.raises(InputError, match=r"own=\[Never\]"):
        through_json(card)


def edited(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda document: document.clear(), "of another format"),
        (edited("format", value=1), "of another format; train the weights again"),
        (lambda document: document.pop("price"), "not the card of a halting model.*price"),
        (edited("surplus", value=1), "not the card of a halting model.*surplus"),
        (edited("price", value=-1.0), "price must be above 0, got -1"),
        (edited("price", value="0.1"), "price must be float, got '0.1'"),
        (edited("horizon", value=2.5), "horizon must be int, got 2.5"),
        (edited("horizon", value=0), "horizon must be at least 1, got 0"),
        (edited("price_range", value=0.5), "price_range must be at least 1"),
        (edited("observed", value="everything"), "observed must be .* got 'everything'"),
        (edited("keeps_best", value=1), "keeps_best must be true.false, got 1"),
        (edited("unit", value="seconds"), "not the card of a halting model.*seconds"),
        (edited("halter", "memory", value=-1), "memory must be at least 0, got -1"),
        (edited("halter", "eyes", value=2), "not the card of a halting model.*eyes"),
        (edited("policies", "updates", "returns", value="all"), "not the card .*all"),
        (edited("policies", "updates", "rule", "kind", value="patient"), "mean 'patience'"),
        (edited("policies", "updates", "rule", "length", value="3"), "length must be int, got '3'"),
        (edited("policies", "updates", "rule", "depth", value=3), "not the card .*depth"),
        (edited("method", value=None), "not the card of a halting model"),
        (edited("halter", value=None), "not the card of a halting model"),
    ],
)
def test_impossible_cards_are_refused(edit: Callable[[dict[str, Any]], None], message: str) -> None:
    document = json.loads(json.dumps(FULL.to_json()))
    edit(document)
    with pytest.raises(InputError, match=message):
        Card.from_json(document)


def test_the_fingerprint_is_of_all_but_the_provenance() -> None:
    model = random_model()
    first = fingerprint(model)
    assert fingerprint(random_model()) == first
    changes: tuple[dict[str, Any], ...] = (
        {"price": 3.0},
        {"horizon": 9},
        {"policies": {}},
        {"unit": CostUnit.UPDATES},
        {"keeps_best": True},
    )
    card = model.card
    for change in changes:
        other = copy.deepcopy(model)
        other.halting.card = replace(card, **change)
        assert fingerprint(other) != first, change
    model.halting.card = replace(card, provenance={"seconds": 3.0})
    assert fingerprint(model) == first
    assert fingerprint(random_model(seed=2)) != first
