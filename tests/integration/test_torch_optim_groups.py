"""What ours adds: groups that are problems, prices, decoupled decay, weights of their own."""

import inspect
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from networks import (
    OURS,
    Model,
    advance,
    flat,
    given_grads,
    loss_of,
)
from random_models import random_model
from torch import nn
from torch.testing import assert_close

import haltwise
from haltwise import LearnedOptimizer
from haltwise.halting import HalterSettings
from haltwise.tasks import family


def test_weight_decay_is_decoupled() -> None:
    (param,), (plain,) = given_grads((5,), dtype=DOUBLE), given_grads((5,), dtype=DOUBLE)
    decayed = OURS["in chunks"]([param], lr=0.5, weight_decay=0.1)
    reference = OURS["in chunks"]([plain], lr=0.5)
    for _ in range(4):
        start, before = param.detach().clone(), plain.detach().clone()
        decayed.step()
        reference.step()
        update = plain.detach() - before  # of the same gradient, at another place
        assert_close(param.detach(), start * (1 - 0.5 * 0.1) + update, rtol=1e-12, atol=1e-12)


def test_each_group_is_a_problem_with_weights_of_its_own() -> None:
    model, twin = Model(), Model()
    groups: list[dict[str, Any]] = [
        {"params": model.first.parameters(), "weights": random_model(price=0.5), "price": 0.5},
        {"params": [model.second.weight, model.scale], "weights": "regression-10d"},
    ]
    both = LearnedOptimizer(groups, "there is no such default, nor need of it", guard=False)
    apart = (
        LearnedOptimizer(twin.first.parameters(), random_model(price=0.5), price=0.5, guard=False),
        LearnedOptimizer([twin.second.weight, twin.scale], "regression-10d", guard=False),
    )
    stops = []
    for step in range(12):
        advance(model, both, 1, first=step)
        loss = loss_of(twin, step)
        twin.zero_grad()
        torch.autograd.backward(loss)
        for own in apart:
            own.step(loss=loss)
        assert torch.equal(flat(model), flat(twin))
        stops.append([own.should_stop for own in apart])
        assert both.should_stop == all(stops[-1])
    assert any(first != second for first, second in stops)
    for found, own in zip(both.halting_posterior, apart, strict=True):
        assert torch.equal(found.log_prob(), own.halting_posterior[0].log_prob())
    assert [group["weights"] for group in both.param_groups] == [
        "OptimizerModel",
        "regression-10d",
    ]


def test_a_later_group_begins_at_its_own_step() -> None:
    first, second = given_grads((3,), (4,))
    optimizer = LearnedOptimizer([first], "regression-10d")
    for _ in range(2):
        optimizer.step(loss=2.0)
    optimizer.add_param_group({"params": [second]})
    optimizer.step(loss=1.0)
    assert [each.log_prob().shape[1] for each in optimizer.halting_posterior] == [4, 2]
    assert optimizer.steps_taken == 3


def test_maximizing_halts_as_minimizing_the_negative() -> None:
    up, down = Model(), Model()
    ascending = LearnedOptimizer(up.parameters(), random_model(), maximize=True)
    descending = LearnedOptimizer(down.parameters(), random_model())
    for step in range(4):
        for model, optimizer, sign in ((up, ascending, -1), (down, descending, 1)):
            optimizer.zero_grad()
            loss = sign * loss_of(model, step)
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)
    found, expected = ascending.halting_posterior[0], descending.halting_posterior[0]
    assert torch.equal(found.log_prob(), expected.log_prob())


def test_a_parameter_that_misses_a_step_goes_on_where_it_was() -> None:
    first, second = given_grads((3,), (2,))
    optimizer = LearnedOptimizer([first, second], random_model("adam"))
    (twin,) = given_grads((3,))
    reference = LearnedOptimizer([twin], random_model("adam"))
    kept = first.grad
    for step in range(4):
        first.grad = None if step == 1 else kept
        optimizer.step()
        if step != 1:
            reference.step()
    assert torch.equal(first, twin)


# --- When something is wrong ---------------------------------------------------------------------


def test_the_weights_given_are_copied() -> None:
    learned = random_model()
    (param,), (twin,) = given_grads((3,)), given_grads((3,))
    optimizer, reference = LearnedOptimizer([param], learned), LearnedOptimizer([twin], learned)
    nn.init.ones_(learned.rule_parameters()[0])
    optimizer.step()
    assert all(weight.requires_grad for weight in learned.rule_parameters())
    reference.step()
    assert torch.equal(param, twin)


# --- Costs ---------------------------------------------------------------------------------------


def test_a_price_given_replaces_that_of_meta_training() -> None:
    problem = family("regression-10d").sample(1, seeded())

    def steps(**options: Any) -> int:
        param = nn.Parameter(problem.start[0].clone())
        optimizer = LearnedOptimizer([param], "regression-10d", **options)
        while not optimizer.should_stop:
            loss, grad = problem.observe(param.detach().unsqueeze(0), optimizer.steps_taken)
            param.grad = grad[0]
            optimizer.step(loss=loss)
        return optimizer.steps_taken

    assert steps(price=0.5) < steps(price=0.0527) == steps() < steps(price=0.0053)


def test_the_default_weights_are_those_of_networks() -> None:
    assert inspect.signature(LearnedOptimizer).parameters["weights"].default == "small-networks"


def test_frozen_parameters_count_for_nothing() -> None:
    (param,), (plain,) = given_grads((5,), dtype=DOUBLE), given_grads((5,), dtype=DOUBLE)
    frozen = torch.ones(50, dtype=DOUBLE, requires_grad=False)
    outputs = []
    for params in ([param, frozen], [plain]):
        optimizer = LearnedOptimizer(params, random_model("adam", halter=HalterSettings()))
        for loss in (3.0, 2.0, 1.5):
            optimizer.step(loss=loss)
        outputs.append(optimizer.state[params[0]]["group"][0]["outputs"])
    for name, value in outputs[0].items():
        assert torch.equal(value, outputs[1][name]), name


def test_a_group_that_is_frozen_is_not_asked_whether_to_stop() -> None:
    first, second = given_grads((3,), (3,))
    groups = [{"params": [first]}, {"params": [second]}]
    optimizer = LearnedOptimizer(groups, "regression-10d", price=0.01)
    optimizer.step(loss=1.0)
    stops = [optimizer.should_stop]
    first.requires_grad_(False)
    first.grad = None
    for _ in range(59):
        optimizer.step(loss=1.0)
    with pytest.warns(haltwise.FitWarning, match="after the 60 steps"):
        optimizer.step(loss=1.0)
    for frozen in (True, False):
        first.requires_grad_(not frozen)
        stops.append(optimizer.should_stop)
    assert stops == [False, True, False]


@pytest.mark.parametrize("price", [None, 0.01])
def test_a_group_may_be_empty(price: float | None) -> None:
    model, twin = Model(), Model()
    groups: list[dict[str, Any]] = [
        {"params": model.parameters()},
        {"params": [], "weight_decay": 0.1},
    ]
    optimizer = LearnedOptimizer(groups, price=price)
    reference = LearnedOptimizer(twin.parameters(), price=price)
    advance(model, optimizer, 3)
    advance(twin, reference, 3)
    assert torch.equal(flat(model), flat(twin))
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.should_stop == reference.should_stop
