"""States as `torch.optim` promises them, saved, copied, loaded and named; and ours."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import DOUBLE
from networks import (
    ALL,
    Model,
    advance,
    assert_same,
    every_dtype,
    every_optimizer,
    flat,
    given_grads,
)
from random_models import random_model
from torch import Tensor, nn

import haltwise
from haltwise import InputError, LearnedOptimizer


@every_optimizer
class TestStates:
    """Of every optimizer."""

    @every_dtype
    @pytest.mark.parametrize("through", ["dict", "file"])
    def test_a_state_round_trip_goes_on_bit_by_bit(
        self, name: str, dtype: torch.dtype, through: str
    ) -> None:
        model = Model(dtype)
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 4, dtype=dtype)
        state = copy.deepcopy(optimizer.state_dict())
        if through == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        twin = Model(dtype)
        twin.load_state_dict(model.state_dict())
        other = ALL[name](twin.parameters())
        other.load_state_dict(state)
        assert_same(other.state_dict(), optimizer.state_dict())
        for each, own in ((model, optimizer), (twin, other)):
            advance(each, own, 4, first=4, dtype=dtype)
        assert torch.equal(flat(twin), flat(model))
        assert_same(other.state_dict(), optimizer.state_dict())

    @pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_go_on_alike_and_apart(self, name: str, copier: Callable[[Any], Any]) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 3)
        twin, other = copier((model, optimizer))
        before = flat(model)
        advance(twin, other, 3, first=3)
        assert torch.equal(flat(model), before)
        advance(model, optimizer, 3, first=3)
        assert torch.equal(flat(twin), flat(model))
        assert not torch.equal(flat(model), before)

    def test_named_parameters_keep_their_names(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.named_parameters())
        names = [key for key, _ in model.named_parameters()]
        assert optimizer.param_groups[0]["param_names"] == names
        assert optimizer.state_dict()["param_groups"][0]["param_names"] == names

    def test_a_load_hook_may_change_the_state(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 1)

        def halve(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            state = copy.deepcopy(state)
            state["param_groups"][0]["lr"] /= 2
            for entry in state["state"].values():
                for value in entry.values():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        value.div_(2)
            return state

        optimizer.register_load_state_dict_pre_hook(halve)
        before = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(before)
        expected = halve(optimizer, before)
        assert_same(optimizer.state_dict(), expected)

    def test_zero_grad_and_words(self, name: str) -> None:
        (param,) = given_grads((2,))
        optimizer = ALL[name]([param])
        assert "Parameter Group 0" in repr(optimizer)
        optimizer.zero_grad(set_to_none=False)
        assert param.grad is not None
        assert (param.grad == 0).all()
        optimizer.zero_grad()
        assert param.grad is None


# --- Ours ---


def test_a_state_of_several_dtypes_goes_on_bit_by_bit() -> None:
    kinds = torch.bfloat16, torch.float32, DOUBLE
    model = nn.ParameterList([given_grads((4,), dtype=dtype)[0] for dtype in kinds])
    twin = nn.ParameterList([given_grads((4,), dtype=dtype)[0] for dtype in kinds])
    optimizer = LearnedOptimizer(model, "regression-10d")
    for step in range(3):
        optimizer.step(loss=3.0 - step)
    other = LearnedOptimizer(twin, "regression-10d")
    other.load_state_dict(optimizer.state_dict())
    twin.load_state_dict(model.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())
    for own in (optimizer, other):
        own.step(loss=0.1)
    assert_same(other.state_dict(), optimizer.state_dict())
    assert_same([*twin.state_dict().values()], [*model.state_dict().values()])
    (found,) = other.halting_posterior
    assert found.log_prob().dtype == DOUBLE
    assert found.log_prob().shape == (1, 5)


def test_a_state_of_others_is_refused_and_changes_nothing() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    advance(model, optimizer, 2)
    before = optimizer.state_dict()

    def state(params: Any, weights: Any) -> dict[str, Any]:
        params = list(params)
        other = LearnedOptimizer(params, weights)
        for param in params:
            param.grad = torch.zeros_like(param)
        other.step()
        return other.state_dict()

    shapes = [param.shape for param in Model().parameters()]
    larger = [nn.Parameter(torch.zeros(2, *shape)) for shape in shapes]
    adam = torch.optim.Adam(Model().parameters()).state_dict()
    for wrong, message in (
        (state(Model().parameters(), "quadratic-10d"), "taken with the weights 'quadratic-10d'"),
        (state(larger, "regression-10d"), r"of parameter 0 .* shape \[1, 1, 2, 20\], got torch.float32, \[1, 2, 2, 20\]"),
        (adam, "not that of a learned optimizer"),
    ):
        with pytest.raises(InputError, match=message):
            optimizer.load_state_dict(wrong)
        assert_same(optimizer.state_dict(), before)
    few = LearnedOptimizer([*Model().parameters()][:2], "regression-10d").state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        optimizer.load_state_dict(few)
    assert_same(optimizer.state_dict(), before)
    assert len(before["param_groups"][0]["digest"]) == 32


def test_a_state_is_a_copy_on_both_ways() -> None:
    model, twin = Model(), Model()
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    advance(model, optimizer, 2)
    state, start = optimizer.state_dict(), flat(model)
    kept = copy.deepcopy(state)
    other = LearnedOptimizer(twin.parameters(), "regression-10d")
    other.load_state_dict(state)
    for each, own in ((model, optimizer), (twin, other)):
        nn.utils.vector_to_parameters(start.clone(), each.parameters())
        advance(each, own, 3, first=2)
        assert_same(state, kept)
    assert torch.equal(flat(model), flat(twin))


def test_the_digest_is_of_all_that_moving_and_stopping_depend_on() -> None:
    def digest(learned: haltwise.OptimizerModel | str) -> str:
        found: str = LearnedOptimizer(given_grads((2,)), learned).param_groups[0]["digest"]
        return found

    others = (
        random_model(seed=2),
        random_model(price=3.0),
        random_model(method="softmax"),
        random_model(hidden_size=4),
    )
    assert len({digest(random_model()), digest(random_model()), *map(digest, others)}) == 5
    assert digest("regression-10d") == digest(haltwise.load("regression-10d"))
