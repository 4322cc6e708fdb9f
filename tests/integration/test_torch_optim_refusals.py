"""Steps that are not finite, losses that are missing, and parameters that cannot be moved."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import (
    Model,
    advance,
    assert_same,
    flat,
    given_grads,
    numbers,
)
from programs import use_distributed
from random_models import random_model
from torch import Tensor, nn

import haltwise
from haltwise import FitWarning, InputError, LearnedOptimizer


@pytest.mark.parametrize("bad", ["nan", "inf", "loss", "other group"])
@pytest.mark.parametrize("learned", [lambda: "regression-10d", lambda: random_model("adam")])
def test_steps_that_are_not_finite_are_skipped_and_counted(
    bad: str, learned: Callable[[], Any]
) -> None:
    weights = learned()

    def build(model: Model) -> LearnedOptimizer:
        groups = [{"params": model.first.parameters()}, {"params": model.second.parameters()}]
        return LearnedOptimizer(groups, weights, chunk_size=2, guard=False)

    model, twin = Model(), Model()
    optimizer, reference = build(model), build(twin)
    for step in range(4):
        advance(model, optimizer, 1, first=step)
        advance(twin, reference, 1, first=step)
        before, state = flat(model), optimizer.state_dict()
        wrong = model.second.weight if bad == "other group" else model.first.bias
        assert wrong.grad is not None
        if bad != "loss":
            wrong.grad.view(-1)[1] = torch.inf if bad == "inf" else torch.nan
        optimizer.step(loss=math.nan if bad == "loss" else 1.0)
        assert torch.equal(flat(model), before)
        assert optimizer.num_skipped == step + 1
        for entry in state["state"].values():
            if "group" in entry:
                entry["group"][0]["skipped"] += 1
        assert_same(optimizer.state_dict(), state)
    assert torch.equal(flat(model), flat(twin))
    assert optimizer.steps_taken == reference.steps_taken == 4
    assert optimizer.should_stop == reference.should_stop


def test_steps_that_are_not_finite_may_raise_and_change_nothing() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.named_parameters(), "regression-10d", nonfinite="raise")
    advance(model, optimizer, 2)
    before, state = flat(model), optimizer.state_dict()
    assert model.second.weight.grad is not None
    model.second.weight.grad[0, 2] = torch.nan
    with pytest.raises(InputError, match=r"not finite at step 2 \(first in the gradient of param"):
        optimizer.step(loss=1.0)
    with pytest.raises(InputError, match=r"'second\.weight'"):
        optimizer.step()
    model.second.weight.grad[0, 2] = 0.0
    with pytest.raises(InputError, match="the loss or a gradient is not finite at step 2; lower"):
        optimizer.step(loss=torch.tensor(torch.inf))
    assert torch.equal(flat(model), before)
    assert_same(optimizer.state_dict(), state)


@pytest.mark.parametrize("guard", [True, False])
def test_a_loop_that_never_moves_is_told_once(guard: bool) -> None:
    """As where a norm is differentiated at 0: its loss looks as if it had converged."""
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    optimizer = LearnedOptimizer(model.named_parameters(), guard=guard)

    def step() -> None:
        optimizer.zero_grad()
        loss = model.weight.square().sum().sqrt() + model.bias.square().sum()
        torch.autograd.backward(loss)
        optimizer.step(loss=loss)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            step()
    with pytest.warns(FitWarning, match=r"first 3 steps .* of parameter 'weight'\), and nothing"):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            step()
    assert (optimizer.num_skipped, optimizer.steps_taken) == (8, 0)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_an_update_that_overflows_is_dropped(nonfinite: str) -> None:
    (param,) = given_grads((3,))
    learned = random_model("sgd", learning_rate=1e30)
    optimizer = LearnedOptimizer([param], learned, nonfinite=nonfinite)
    assert param.grad is not None
    param.grad *= 1e20
    if nonfinite == "raise":
        with pytest.raises(InputError, match="an update is not finite at step 0; lower lr"):
            optimizer.step(loss=1.0)
    else:
        optimizer.step(loss=1.0)
    assert torch.equal(param, numbers(3, seed=0))
    assert (optimizer.num_skipped, optimizer.steps_taken) == (int(nonfinite == "skip"), 0)
    kept = [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]
    assert all(value.isfinite().all() for value in kept)
    param.grad *= 1e-50
    optimizer.step(loss=1.0)
    assert param.isfinite().all()
    assert optimizer.halting_posterior[0].log_prob().isfinite().all()


def test_without_the_loss_it_does_not_pretend_to_know() -> None:
    (param,) = given_grads((3,))
    optimizer = LearnedOptimizer([param], "regression-10d")
    assert optimizer.should_stop is False

    def horizons() -> list[int]:
        return [each.log_prob().shape[1] - 1 for each in optimizer.halting_posterior]

    assert horizons() == []
    optimizer.step(loss=3.0)
    assert horizons() == [1]
    optimizer.step()
    optimizer.step(loss=2.0)
    for ask in ("should_stop", "halting_posterior"):
        with pytest.raises(InputError, match="1 of 3 steps came without; pass it to every step"):
            getattr(optimizer, ask)
    assert optimizer.steps_taken == 3


def test_a_rate_of_another_optimizer_is_warned_of() -> None:
    (param,) = given_grads((3,))
    with pytest.warns(haltwise.FitWarning, match=r"lr = 0.001 .* 1,000 times too short; leave lr"):
        LearnedOptimizer([param], lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lr in (0.0, 0.05, 1.0):
            LearnedOptimizer([param], lr=lr)
        optimizer = LearnedOptimizer([param])
        torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3)


def uncalibrated() -> haltwise.OptimizerModel:
    model = random_model()
    model.halting.card = replace(model.card, policies={})
    return model


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        (lambda: haltwise.load("regression-10d-lstm"), "meta-trained without halting"),
        (uncalibrated, "do not know when to stop yet"),
    ],
)
def test_weights_that_cannot_halt_say_so(
    learned: Callable[[], haltwise.OptimizerModel], message: str
) -> None:
    (param,) = given_grads((3,))
    optimizer = LearnedOptimizer([param], learned())
    optimizer.step(loss=1.0)
    with pytest.raises(InputError, match=message):
        optimizer.should_stop  # noqa: B018
    assert not torch.equal(param, numbers(3, seed=0))


@pytest.mark.parametrize(
    "loss",
    [
        torch.ones(2),
        torch.ones((), dtype=torch.complex64),
        torch.tensor(True),
        torch.ones((), device="meta"),
    ],
)
def test_a_loss_that_is_no_number_is_refused(loss: Tensor) -> None:
    (param,) = given_grads((3,))
    optimizer = LearnedOptimizer([param], "regression-10d")
    with pytest.raises(InputError, match="single real number"):
        optimizer.step(loss=loss)
    with pytest.raises(InputError, match="give it once"):
        optimizer.step(lambda: 1.0, loss=1.0)
    assert torch.equal(param, numbers(3, seed=0))


def test_sparse_gradients_are_refused() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    optimizer = LearnedOptimizer(layer.named_parameters(), "regression-10d")
    torch.autograd.backward(layer(torch.tensor([1, 2])).sum())
    with pytest.raises(
        InputError, match=r"gradient of parameter 'weight' is sparse .*sparse=False"
    ):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64])
def test_other_numbers_are_refused(dtype: torch.dtype) -> None:
    good = nn.Parameter(numbers(2))
    odd = torch.zeros(3, dtype=dtype)
    with pytest.raises(
        InputError, match=r"parameter 1 of shape \[3\] is a .*leave out those that are"
    ):
        LearnedOptimizer([good, odd], "regression-10d")
    optimizer = LearnedOptimizer([good], "regression-10d")
    with pytest.raises(InputError, match="real floating-point"):
        optimizer.add_param_group({"params": [odd]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonfinite": "ignore"}, "'skip' or 'raise', got 'ignore'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"price": 0.0}, "price must be above 0 and finite, got 0.0"),
        ({"guard": "no"}, "guard must be True or False, got 'no'"),
        ({"maximize": "no"}, "maximize must be True or False, got 'no'"),
        ({"weights": "regresion-10d"}, "did you mean 'regression-10d'"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LearnedOptimizer(given_grads((2,)), **{"weights": "regression-10d", **options})


@pytest.mark.parametrize("kernel", ["", "triton"])
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("lr", float("nan"), "lr has become nan"),
        ("lr", "fast", "lr must be a single real"),
        ("lr", -1e-3, "lr has become -0.001, but must be at least 0"),
        ("lr", torch.tensor(-1.0), "lr has become -1.0"),
        ("weight_decay", float("inf"), "weight_decay has become inf"),
        ("price", 0.0, "price has become 0.0, but must be above 0"),
        ("maximize", "yes", "maximize must be True or False"),
    ],
)
def test_a_setting_that_a_schedule_spoils_is_told_and_moves_nothing(
    setting: str, value: Any, message: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel:
        pytest.importorskip("triton")
    monkeypatch.setenv("HALTWISE_KERNEL", kernel)
    (param,) = given_grads((2,))
    optimizer = LearnedOptimizer([param], "regression-10d")
    optimizer.step(loss=1.0)
    before = param.detach().clone()
    optimizer.param_groups[0][setting] = value
    with pytest.raises(InputError, match=message):
        optimizer.step(loss=1.0)
    assert torch.equal(param, before)
    assert (optimizer.steps_taken, optimizer.num_skipped) == (1, 0)


def test_a_parameter_that_is_put_into_a_group_is_looked_at() -> None:
    (param,) = given_grads((2,))
    optimizer = LearnedOptimizer([param], "regression-10d")
    optimizer.step(loss=1.0)
    odd = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    odd.grad = torch.ones_like(odd)
    optimizer.param_groups[0]["params"].append(odd)
    with pytest.raises(InputError, match="real floating-point"):
        optimizer.step(loss=1.0)


def test_weights_for_other_sizes_are_refused() -> None:
    learned = random_model(
        "partitioned", sizes=[4, 3], rules=[["adam", {"learning_rate": 0.1}]] * 2
    )
    LearnedOptimizer(given_grads((2, 2), (0,), (2,), (1,)), learned)
    with pytest.raises(InputError, match=r"do not fit .* \[4, 3\] coordinates do not make up 8"):
        LearnedOptimizer(given_grads((4,), (4,)), learned)
    with pytest.raises(InputError, match=r"from coordinate 4 on.* within parameter 1 of shape \[3"):
        LearnedOptimizer(given_grads((2,), (3,), (2,)), learned)


def test_a_learning_rate_or_a_loss_in_the_wrong_place_is_told_where_to_go() -> None:
    (param,) = given_grads((3,))
    for wrong in (0.001, 1, torch.tensor(0.1)):
        with pytest.raises(InputError, match=r"lr, given by its name, multiplies its updates"):
            LearnedOptimizer([param], wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"weights must be a name.* got None"):
        LearnedOptimizer([{"params": [param], "weights": None}])
    optimizer = LearnedOptimizer([param], "regression-10d")
    for loss in (torch.tensor(3.0), 3.0):
        with pytest.raises(InputError, match=r"write step\(loss=loss\)"):
            optimizer.step(loss)  # type: ignore[arg-type]
    assert torch.equal(param, numbers(3, seed=0))


# --- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(64, 4), r"parameter 0 of shape \[64, 4\] has 256 entries .* is of 16 on cpu"),
        (torch.ones(2, 4), "has 8 entries on cpu"),
        (torch.ones(8, 2), r"parameter 0 of shape \[8, 2\] has 16 entries"),
        (torch.ones(4, 4, dtype=torch.float64), "moved in torch.float64, but its state .*float32"),
    ],
)
@pytest.mark.parametrize("has_gradient", [True, False])
def test_parameters_that_changed_after_a_step_are_refused(
    value: Tensor, message: str, has_gradient: bool
) -> None:
    param, other = given_grads((4, 4), (2,))
    optimizer = LearnedOptimizer([param, other], "regression-10d")
    optimizer.step(loss=1.0)
    param.grad = None
    param.data = value
    if has_gradient:
        param.grad = torch.ones_like(value)
    before = other.detach().clone()
    with pytest.raises(InputError, match=message):
        optimizer.step(loss=1.0)
    assert torch.equal(other, before)


def test_a_gradient_of_another_size_is_refused() -> None:
    (param,) = given_grads((4, 4))
    optimizer = LearnedOptimizer([param], "regression-10d")
    param.data = torch.ones(2)  # the gradient stays
    with pytest.raises(InputError, match=r"gradient of parameter 0 .* is of shape \[4, 4\]"):
        optimizer.step(loss=1.0)


class Labelled(Tensor):
    """A subclass whose memory nobody knows."""


def flattened() -> nn.Parameter:
    param = nn.Parameter(torch.ones(3))
    param._fsdp_flattened = True  # type: ignore[attr-defined]
    return param


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (lambda: nn.Parameter(torch.ones(2, device="meta")), "Parameter on meta"),
        (lambda: nn.LazyLinear(2).weight, "UninitializedParameter"),
        (flattened, "Parameter on cpu"),
        (lambda: torch.ones(2).as_subclass(Labelled).requires_grad_(), "Labelled"),
    ],
)
def test_parameters_that_are_not_whole_and_in_memory_are_refused(
    odd: Callable[[], Any], kind: str
) -> None:
    with pytest.raises(InputError, match=f"is a {kind}.*DistributedDataParallel"):
        LearnedOptimizer([nn.Parameter(torch.ones(2)), odd()], "regression-10d")


def test_distributed_parameters_are_refused() -> None:
    shown = use_distributed("""
from haltwise import HaltingMonitor, LearnedOptimizer
for use in (LearnedOptimizer, HaltingMonitor.recording("x").start):
    try:
        use([torch.nn.Parameter(spread)])
    except ValueError as error:
        print(error)
""")
    assert shown.count("is a DTensor on cpu, which is not whole") == 2


def test_a_parameter_whose_entries_share_memory_is_refused() -> None:
    param = torch.nn.Parameter(torch.ones(1).expand(3))
    with pytest.raises(InputError, match=r"share one place in memory, .* clone it"):
        LearnedOptimizer([param], "regression-10d")
    LearnedOptimizer([torch.nn.Parameter(torch.ones(1).expand(1, 1))], "regression-10d")


def test_a_parameter_class_of_ones_own_is_optimized() -> None:
    class Own(nn.Parameter):
        """As libraries have them."""

    param, (twin,) = Own(numbers(3, seed=0)), given_grads((3,))
    param.grad = numbers(3, seed=50)
    for own in (param, twin):
        LearnedOptimizer([own], "regression-10d").step(loss=1.0)
    assert torch.equal(param, twin)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_first_step_that_shows_nothing_is_no_step(decay: float) -> None:
    (param,) = given_grads((3,))
    optimizer = LearnedOptimizer([param], "regression-10d", weight_decay=decay)
    grad, param.grad = param.grad, torch.zeros(3)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert "rule.hidden" in optimizer.state[param]
    assert optimizer.steps_taken == 0
    optimizer.param_groups[0]["lr"] = 1.0
    param.grad = grad
    optimizer.step(loss=1.0)
    optimizer.should_stop  # noqa: B018
    param.grad = torch.zeros(3)
    optimizer.step()
    assert optimizer.steps_taken == 2


def test_a_parameter_that_modules_share_is_to_be_given_once() -> None:
    """PyTorch warns, and its optimizers then move it twice in every step."""
    shared = nn.Parameter(torch.ones(3))
    optimizer = haltwise.LearnedOptimizer([nn.Parameter(torch.ones(2))], "regression-10d")
    for params in ([shared, shared], [("first", shared), ("second", shared)]):
        with (
            pytest.warns(UserWarning, match="duplicate parameters"),
            pytest.raises(InputError, match="twice"),
        ):
            haltwise.LearnedOptimizer(params, "regression-10d")
    with (
        pytest.warns(UserWarning, match="duplicate parameters"),
        pytest.raises(InputError, match="twice"),
    ):
        optimizer.add_param_group({"params": [shared, shared]})
    assert len(optimizer.param_groups) == 1
