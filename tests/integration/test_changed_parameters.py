"""Parameters that a loop changes itself between steps: another run, the best state, a clip."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Model, assert_same, flat, loss_of
from torch import Tensor, nn
from torch.testing import assert_close

from haltwise import FitWarning, LearnedOptimizer
from haltwise.interfaces.torch_optim.on_device import DeviceSteps

every_kernel = pytest.mark.parametrize("kernel", ["", "triton"])


def set_kernel(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel:
        pytest.importorskip("triton")
    monkeypatch.setenv("HALTWISE_KERNEL", kernel)


def train(
    model: Model,
    optimizer: LearnedOptimizer,
    num_steps: int,
    after: Callable[[Model], object] = lambda model: None,
    sign: float = 1.0,
) -> None:
    """Steps on the same examples, after each of which the loop may change the parameters."""
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = sign * loss_of(model)
        torch.autograd.backward(loss)
        optimizer.step(loss=loss)
        after(model)


@torch.no_grad()
def clip(model: Model) -> None:
    for param in model.parameters():
        param.clamp_(-3, 3)


# The interpreter is slow, so it does what is harder: to maximize.
@pytest.mark.parametrize(("kernel", "sign"), [("", 1.0), ("", -1.0), ("triton", -1.0)])
def test_another_run_begins_anew(kernel: str, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    set_kernel(kernel, monkeypatch)
    model, maximize = Model(), sign < 0
    start = copy.deepcopy(model.state_dict())
    optimizer = LearnedOptimizer(model.parameters(), maximize=maximize)
    train(model, optimizer, 12, sign=sign)
    for _ in range(2):  # a fold each, as the loops of many do with other optimizers
        model.load_state_dict(start)
        for _ in range(2):
            train(model, optimizer, 1, sign=sign)
            assert not optimizer.should_stop
        twin = copy.deepcopy(model)
        with pytest.warns(
            FitWarning, match=r"changed by others shortly before step 14, .* another run"
        ):
            train(model, optimizer, 1, sign=sign)
        train(model, optimizer, 11, sign=sign)
        train(twin, LearnedOptimizer(twin.parameters(), maximize=maximize), 12, sign=sign)
        assert torch.equal(flat(model), flat(twin))
        assert optimizer.steps_taken == 12


def test_all_groups_begin_anew_for_they_have_one_loss() -> None:
    model = Model()
    groups: list[dict[str, Any]] = [
        {"params": model.first.parameters()},
        {"params": [model.second.weight]},
    ]
    optimizer = LearnedOptimizer(groups)
    train(model, optimizer, 15)
    with torch.no_grad():
        model.second.weight.fill_(5)
    with pytest.warns(FitWarning, match="begin anew") as told:
        train(model, optimizer, 3)
    assert len(told) == 2
    assert [record["step"] for _, record in optimizer._records()] == [1, 1]


def test_a_loop_that_always_clips_is_still_guarded() -> None:
    model, plain = Model(), Model()
    with torch.no_grad():
        assert all((param.abs() < 3).all() for param in model.parameters())
    ends = []
    for own, after in ((model, clip), (plain, lambda model: None)):
        optimizer = LearnedOptimizer(own.parameters())
        train(own, optimizer, 20, after)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(4):  # a divergence
                optimizer.step(loss=1000.0)
                after(own)
        assert [str(each.message)[:15] for each in told] == ["Adam takes over"]
        ends.append(flat(own))
    assert torch.equal(*ends)


def test_an_outlier_after_a_change_is_no_other_start() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.parameters())
    train(model, optimizer, 15)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (1000.0, 1000.0, None, None):
            optimizer.zero_grad()
            now = loss_of(model)
            torch.autograd.backward(now)
            optimizer.step(loss=now if loss is None else loss)
    assert optimizer.steps_taken == 19


def test_a_change_that_does_no_harm_changes_nothing() -> None:
    model, twin = Model(), Model()
    optimizer, reference = (LearnedOptimizer(own.parameters()) for own in (model, twin))
    for each, own in ((model, optimizer), (twin, reference)):
        train(each, own, 15)
    best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)  # averaged parameters, too, are swapped in and out again
    for each, own in ((model, optimizer), (twin, reference)):
        train(each, own, 5)
    assert_same(optimizer.state_dict(), reference.state_dict())


@every_kernel
@pytest.mark.parametrize(
    ("always", "last", "taken"),
    [(None, None, True), (None, "same", False), ("clip", None, True), ("clip", "same", False)],
)
def test_an_update_is_not_taken_from_other_parameters(
    always: str | None,
    last: str | None,
    taken: bool,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_kernel(kernel, monkeypatch)
    param = nn.Parameter(torch.ones(10))
    optimizer = LearnedOptimizer([param])
    while not optimizer.should_stop:
        before = param.detach().clone()
        param.grad = before.clone()
        optimizer.step(loss=before.square().sum() / 2)
        if always:
            param.detach().clamp_(-3, 3)
    after = param.detach().clone()
    if last:
        param.detach().copy_(after)  # as load_state_dict does with the best state of all
    assert optimizer.take_back() is taken
    assert_close(param.detach(), before if taken else after, rtol=0, atol=0 if not taken else 1e-7)
    assert not optimizer.take_back()


@pytest.mark.parametrize("first", ["nan", "none"])
def test_another_start_is_noticed_whose_first_loss_tells_nothing(first: str) -> None:
    param = nn.Parameter(torch.linspace(-1, 1, 8))
    optimizer = LearnedOptimizer([param])

    def step(given: str = "own") -> float:
        optimizer.zero_grad()
        loss = (param - 1).square().mean()
        torch.autograd.backward(loss)
        value = {"own": loss.detach(), "nan": torch.tensor(torch.nan), "none": None}[given]
        optimizer.step(loss=value)
        return loss.item()

    for _ in range(40):
        step()
    with torch.no_grad():
        param.fill_(-9)  # its loss is 100
    with pytest.warns(FitWarning, match="begin anew"):
        assert all(loss > 50 for loss in [step(first), *(step() for _ in range(6))])


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
def test_a_failure_at_another_start_leaves_no_loss_to_divide_by() -> None:
    param = nn.Parameter(torch.ones(4))
    optimizer = LearnedOptimizer([param], "regression-10d")

    def step(loss: float, grad: float) -> None:
        param.grad = torch.full((4,), grad)
        optimizer.step(loss=loss)

    for _ in range(14):
        step(1.0, 1e-3)
    for _ in range(2):
        step(1.0, math.nan)
    with torch.no_grad():
        param.zero_()
    step(9.0, math.nan)
    step(9.0, 1.0)
    assert param.isfinite().all()


@pytest.mark.parametrize("way", ["another optimizer", "the same optimizer", "a copy"])
@pytest.mark.parametrize("losses", [(1.0, 1e6, 1.0), (1e6, 1.0, 1.0)])
def test_a_loop_that_clips_goes_on_bit_by_bit_whatever_its_next_losses(
    losses: tuple[float, ...], way: str
) -> None:
    """One is far above all, which the guard is to see as it would have."""
    param = nn.Parameter(torch.linspace(-2, 2, 8))

    def steps(param: nn.Parameter, optimizer: LearnedOptimizer, *factors: float) -> None:
        for factor in factors:
            optimizer.zero_grad()
            loss = param.square().mean()
            loss.backward()
            optimizer.step(loss=factor * loss.detach())
            with torch.no_grad():
                param.clamp_(-3, 3)

    optimizer = LearnedOptimizer([param])
    steps(param, optimizer, *[1.0] * 15)
    other = nn.Parameter(param.detach().clone())
    resumed = LearnedOptimizer([other])
    if way == "a copy":
        other, resumed = copy.deepcopy((param, optimizer))
    else:
        saved = optimizer.state_dict()
        if way == "the same optimizer":  # which sees a change, and a loss that makes it doubt
            resumed.load_state_dict(saved)
            steps(other, resumed, 1.0, 1.0)
            other.detach().mul_(1)
            other.detach().mul_(1)
            steps(other, resumed, 1e6)
            other.detach().copy_(param.detach())
        resumed.load_state_dict(saved)
    for each, own in ((param, optimizer), (other, resumed)):
        steps(each, own, *losses)
    assert_same(resumed.state_dict(), optimizer.state_dict())
    assert torch.equal(other, param)


def test_without_losses_a_change_tells_nothing_and_kernels_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_kernel("triton", monkeypatch)
    taken, plain = [], DeviceSteps.step

    def step(steps: DeviceSteps, loss: Tensor | None) -> None:
        taken.append(loss)
        plain(steps, loss)

    monkeypatch.setattr(DeviceSteps, "step", step)
    param = nn.Parameter(torch.ones(4))
    optimizer = LearnedOptimizer([param])
    for _ in range(4):
        param.grad = torch.ones(4)
        optimizer.step()
        if len(taken) == 2:
            param.detach().mul_(2)
    assert len(taken) == 4
