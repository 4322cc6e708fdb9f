"""The torch optimizer against the library's own steps on the flattened problem."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import DOUBLE, randn, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_gradient_cases import step_rule
from networks import OURS, Model, advance, assert_same, flat, given_grads, loss_of
from random_models import random_model
from torch import Tensor, nn
from torch.testing import assert_close

import haltwise
from haltwise import LearnedOptimizer, OptimizerModel
from haltwise.processes import StepObservation
from haltwise.processes.signals import init_signals, measure_signals
from haltwise.rollout import record
from haltwise.stop_rules import CostUnit, DecisionTime, ReturnedIterate, StopPolicy
from haltwise.tasks import family
from haltwise.testing import check_update_rule
from haltwise.update_rules import PooledGradient, State, SupportsChunks, UpdateRule, UpdateStep

HALVES: dict[str, Any] = {
    "sizes": [9, None],
    "rules": [["lstm", {"hidden_size": 3}], ["adam", {"learning_rate": 0.05}]],
}
WEIGHTS: dict[str, Callable[[], OptimizerModel]] = {
    "shipped": lambda: haltwise.load("regression-10d"),
    "thesis": lambda: haltwise.load("regression-2d-thesis"),
    "mode": lambda: haltwise.load("regression-2d-mode"),
    "random": random_model,
    "graves": lambda: random_model(method="graves"),
    "adam": lambda: random_model("adam"),
    "momentum": lambda: random_model("sgd", learning_rate=0.05, momentum=0.9),
    "partitioned": lambda: random_model("partitioned", **HALVES),
    "nested": lambda: random_model(
        "partitioned",
        sizes=[13, 4],
        rules=[["partitioned", HALVES], ["lstm", {"hidden_size": 2, "num_layers": 1}]],
    ),
}


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_steps_equal_those_on_the_flat_problem(weights: str, chunk_size: int) -> None:
    learned = WEIGHTS[weights]()
    model, twin = Model(DOUBLE), Model(DOUBLE)
    optimizer = LearnedOptimizer(model.parameters(), learned, chunk_size=chunk_size, guard=False)
    learned = copy.deepcopy(learned).double()
    price = torch.full((1,), learned.card.price, dtype=DOUBLE)
    params = flat(twin).unsqueeze(0)
    state, last = learned.rule.init(params), init_signals(params)
    of_halter, seen = learned.halting.init(1, params), []
    rule = learned.policy(CostUnit.GRADIENTS).rule
    memory, stopped = rule.init(1, price), False
    for step in range(8):
        advance(model, optimizer, 1, first=step, dtype=DOUBLE)
        nn.utils.vector_to_parameters(params[0], twin.parameters())
        loss = loss_of(twin, step, DOUBLE)
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        grad = torch.cat([value.flatten() for value in grads]).unsqueeze(0)
        value = loss.detach().view(1)
        with torch.no_grad():
            update, readout, state = step_rule(learned.rule, grad, state)
        signals, last = measure_signals(step, value, grad, update, last)
        outputs, of_halter = learned.halting.step(signals, readout, price, of_halter)
        params = params + update
        assert_close(flat(model), params[0], rtol=1e-10, atol=1e-10)
        seen.append(outputs)
        stop, memory = rule.step(StepObservation(step, value, outputs=outputs), memory)
        stopped = stopped or bool(stop)
        assert optimizer.should_stop == stopped
        assert optimizer.steps_taken == step + 1
        along = {name: torch.stack([one[name] for one in seen], 1) for name in outputs}
        expected = learned.halting.method.posterior(along, DecisionTime.AFTER_GRADIENT)
        (found,) = optimizer.halting_posterior
        assert type(found) is type(expected)
        assert_close(found.log_prob(), expected.log_prob(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["regression-10d", "quadratic-10d"])
def test_it_stops_after_as_many_gradients_as_solve_and_moves_as_recorded(name: str) -> None:
    learned = haltwise.load(name).double()
    assert learned.card.family is not None
    problems = family(learned.card.family.name).sample(6, seeded(), dtype=DOUBLE)
    policy = StopPolicy(learned.policy(CostUnit.GRADIENTS).rule, ReturnedIterate.NEXT)
    result = haltwise.solve(problems, learned, policy, guard=False)
    whole = record(learned.rule, problems, 10).final
    assert whole is not None
    for problem in range(6):
        one = problems.select(torch.tensor([problem]))
        param = nn.Parameter(one.start[0].clone())
        optimizer = LearnedOptimizer([param], name)
        ended = None
        for step in range(learned.card.horizon):
            loss, grad = one.observe(param.detach().unsqueeze(0), step)
            param.grad = grad[0]
            optimizer.step(loss=loss)
            if step == 9:
                assert_close(param.detach(), whole[problem], rtol=1e-9, atol=1e-9)
            if optimizer.should_stop and ended is None:
                ended = step + 1
                assert_close(param.detach(), result.params[problem], rtol=1e-6, atol=1e-6)
        assert ended == result.num_gradients[problem]


def test_single_precision_agrees_with_double() -> None:
    models = Model(torch.float32), Model(DOUBLE)
    for model, dtype in zip(models, (torch.float32, DOUBLE), strict=True):
        advance(model, OURS["in chunks"](model.parameters()), 8, dtype=dtype)
    assert_close(flat(models[0]).double(), flat(models[1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_moved_in_single(dtype: torch.dtype) -> None:
    (half,) = given_grads((6,), dtype=dtype)
    assert half.grad is not None
    single = nn.Parameter(half.detach().float())
    single.grad = half.grad.float()
    optimizer, reference = (OURS["shipped"]([param], guard=False) for param in (half, single))
    optimizer.step()
    reference.step()
    assert torch.equal(half, single.to(dtype))
    assert_same(
        [*optimizer.state_dict()["state"].values()], [*reference.state_dict()["state"].values()]
    )
    kept = [value for value in optimizer.state[half].values() if isinstance(value, Tensor)]
    assert {value.dtype for value in kept} == {torch.float32, torch.bool}


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    chunk_size=st.integers(1, 12),
    scale=st.floats(-12, 12),
)
def test_cutting_a_group_into_tensors_and_chunks_changes_nothing(
    sizes: list[int], chunk_size: int, scale: float
) -> None:
    whole = nn.Parameter(randn(sum(sizes), dtype=DOUBLE))
    pieces = [nn.Parameter(piece.clone()) for piece in whole.detach().split(sizes)]
    learned = random_model()
    optimizer = LearnedOptimizer([whole], learned, guard=False)
    cut = LearnedOptimizer(pieces, learned, chunk_size=chunk_size, guard=False)
    for step in range(3):
        grad = 10**scale * randn(sum(sizes), seed=step, dtype=DOUBLE)
        whole.grad = grad
        for piece, own in zip(pieces, grad.split(sizes), strict=True):
            piece.grad = own
        optimizer.step(loss=float(step))
        cut.step(loss=float(step))
    assert_close(torch.cat([piece.detach() for piece in pieces]), whole.detach())
    assert_close(cut.halting_posterior[0].log_prob(), optimizer.halting_posterior[0].log_prob())


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "weights", ["small-networks", "mnist-mlp", *sorted(WEIGHTS.keys() - {"nested"})]
)
def test_tensors_that_are_moved_at_once_move_as_by_themselves(
    weights: str, state_dtype: torch.dtype | None
) -> None:
    """With chunks of one each is moved alone; one tensor joins late, one is left out of a step."""
    learned: Any = WEIGHTS[weights]() if weights in WEIGHTS else weights
    dtype = DOUBLE if state_dtype is None else torch.float32
    shapes = (6, 1), (3,), (2, 3), (6,), (5,), (1,), (3, 1), (1, 1), (6,)  # a new rule from 9 on
    together, apart = (
        [nn.Parameter(randn(*shape, seed=n).to(dtype)) for n, shape in enumerate(shapes)]
        for _ in range(2)
    )
    settings: dict[str, Any] = {"weight_decay": 0.01, "maximize": True, "guard": False}
    optimizers = [
        LearnedOptimizer(params, learned, chunk_size=size, state_dtype=state_dtype, **settings)
        for params, size in ((together, None), (apart, 1))
    ]
    for step in range(6):
        for params in (together, apart):
            for number, param in enumerate(params):
                grad = randn(*param.shape, seed=100 * step + number).to(dtype)
                waits = (number == 1 and step < 2) or (number == 3 and step == 4)
                param.grad = None if waits else grad
        for optimizer in optimizers:
            optimizer.step(loss=0.1 * step - 1.0)
    tolerance: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
    if state_dtype is not None:  # what rounds otherwise may round to the next number
        tolerance = {"rtol": 2e-2, "atol": 2e-2}
    assert_close(together, apart, **tolerance)
    for one, other in zip(together, apart, strict=True):
        states = [o.state[param] for o, param in zip(optimizers, (one, other), strict=True)]
        for name in states[0].keys() - {"group"}:
            assert_close(states[0][name], states[1][name], **tolerance, msg=name)
    outputs = [
        optimizer.state_dict()["state"][0]["group"][0].get("outputs") for optimizer in optimizers
    ]
    if state_dtype is None:
        assert_close(*outputs, rtol=1e-7, atol=1e-9)


class Delayed(UpdateRule, SupportsChunks):
    """Moves by older gradients, too: entries of its state are those of others before the step."""

    def init(self, params: Tensor) -> State:
        zeros = torch.zeros_like(params)
        pair, turns = zeros.unsqueeze(-1).repeat(1, 1, 2), torch.eye(2, dtype=params.dtype)
        own = {"turns": turns.repeat(len(params), 1, 1).cumsum(1), "even": zeros[:, 0]}
        return {
            "last": zeros,
            "before": zeros,
            "pair": pair,
            "first": zeros,
            **own,
            "odd": zeros[:, 0] + 1,
        }

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        older = state["last"] + 2 * state["before"] + 3 * state["first"]
        share = (1 + state["even"] + state["turns"][:, 0, 1]).unsqueeze(1)
        after = {
            "last": grad,
            "before": state["last"],
            "pair": torch.stack((state["pair"][..., 1], grad), -1),
            "first": state["pair"][..., 0],
            "turns": state["turns"].mT,
            "even": state["odd"],
            "odd": state["even"],
        }
        return UpdateStep.without_readout(-0.1 * share * (grad + older), after)

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self.update(grad, state)


class CountsInPlace(UpdateRule, SupportsChunks):
    """A chunk may take the memory of its state, also where that is of the whole tensor."""

    def init(self, params: Tensor) -> State:
        zeros = torch.zeros_like(params)
        return {"always": zeros[:, 0] + 0.1, "count": zeros[:, :1], "mean": zeros}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return self._move(grad, {name: value.clone() for name, value in state.items()})

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self._move(grad, state)

    def _move(self, grad: Tensor, state: State) -> UpdateStep:
        count, mean = state["count"].add_(1), state["mean"].mul_(0.9).add_(grad)
        kept = {"always": state["always"], "count": count, "mean": mean}
        return UpdateStep.without_readout(-kept["always"].unsqueeze(1) * mean / count, kept)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [[12], [1, 2, 3, 6]])
@pytest.mark.parametrize("rule", [Delayed(), CountsInPlace()])
def test_rules_may_return_old_entries_under_other_names_and_write_in_place(
    rule: UpdateRule, sizes: list[int], chunk_size: int | None
) -> None:
    check_update_rule(rule)
    learned = random_model("sgd")
    learned.rule = rule
    params = [nn.Parameter(part.clone()) for part in randn(12, dtype=DOUBLE).split(sizes)]
    expected = [param.detach().view(1, -1) for param in params]
    states = [rule.init(value) for value in expected]
    optimizer = LearnedOptimizer(params, learned, chunk_size=chunk_size, guard=False)
    for step in range(5):
        for number, param in enumerate(params):
            grad = randn(*param.shape, seed=10 * step + number, dtype=DOUBLE)
            param.grad = None if number == 1 and step == 0 else grad  # it joins late
            if param.grad is not None:
                update, _, states[number] = rule.update(grad.unsqueeze(0), states[number])
                expected[number] = expected[number] + update
        optimizer.step()
        for param, value in zip(params, expected, strict=True):
            assert_close(param.detach().unsqueeze(0), value)


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20, 1e19, 3e38])
def test_extreme_gradients_leave_everything_finite(scale: float) -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = OURS["in chunks"]([param])
    assert isinstance(optimizer, LearnedOptimizer)
    for sign in (1.0, -1.0, 1.0):
        param.grad = sign * torch.tensor([scale, -scale, scale / 3, scale])
        optimizer.step(loss=1.0)
    assert optimizer.num_skipped == 0
    assert param.isfinite().all()
    assert (param.abs() < 100).all()
    assert optimizer.halting_posterior[0].log_prob().isfinite().all()
