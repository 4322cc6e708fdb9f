"""Fused steps of the torch optimizer against those that the library takes elsewhere."""

import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from fused import Run, assert_alike, fused_device, train_both, twins
from torch import Tensor, nn

import haltwise
from haltwise import LearnedOptimizer
from haltwise.interfaces.torch_optim import optimizer as optimizer_of_torch

__all__ = ["fused_device"]


def test_steps_are_the_same(fused_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = twins(fused_device)
    train_both(monkeypatch, fused, plain, 5)
    assert_alike(fused, plain)
    assert fused.optimizer.should_stop is plain.optimizer.should_stop


def _two_groups(model: nn.Module) -> list[dict[str, Any]]:
    first, _, last = model.children()
    return [
        {"params": first.parameters(), "weight_decay": 0.05, "lr": torch.tensor(0.5)},
        {"params": last.parameters(), "weights": "regression-10d", "price": 0.02},
    ]


def test_groups_have_their_own_weights_and_settings(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(step: int, model: nn.Module) -> None:
        if step == 2:  # a tensor without a gradient, and one group's that is not finite
            model.get_parameter("0.bias").grad = None
        if step == 3:
            given = model.get_parameter("2.weight").grad
            assert given is not None
            given[0, 0] = torch.nan

    fused, plain = twins(fused_device, groups=_two_groups)
    train_both(monkeypatch, fused, plain, 5, spoil=spoil)
    assert fused.optimizer.num_skipped == 1
    assert_alike(fused, plain)


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"guard": False, "maximize": True}},
        {"options": {"weights": "regression-2d-thesis", "guard": False}},
        {"with_loss": False},
        {"dtype": torch.bfloat16},
        {"options": {"state_dtype": torch.bfloat16}},
        {"options": {"lr": 1e38}},  # updates overflow
    ],
    ids=["maximize", "thesis", "no loss", "bfloat16", "bfloat16 state", "overflow"],
)
def test_options_do_the_same(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    fused, plain = twins(fused_device, **options)
    train_both(monkeypatch, fused, plain, 4)
    lr = options.get("options", {}).get("lr", 1)
    tolerance = 1e-3 if "state_dtype" in str(options) else 1e-4 * max(lr, 1)
    rounds = "dtype" in options  # a GPU and a CPU round gradients of bfloat16 otherwise
    assert_alike(fused, plain, 0.02 if rounds else tolerance, 0.02 if rounds else 1e-3)


def test_adam_takes_over_and_goes_back(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, plain = twins(fused_device)
    train_both(monkeypatch, fused, plain, 9, rise=1.8)
    (record,) = fused.records
    assert record["guard"]["adam"] > 0
    assert_alike(fused, plain)


def test_a_loop_that_never_moves_is_told_where_it_is_read(fused_device: torch.device) -> None:
    def spoil(step: int, model: nn.Module) -> None:
        model.get_parameter("0.bias").grad = torch.full((9,), torch.nan, device=fused_device)

    run = Run(fused_device)
    run.train(4, spoil=spoil)
    assert not run.warned
    with pytest.warns(haltwise.FitWarning, match="first 4 steps .* gradient of parameter 1 of"):
        assert not run.optimizer.should_stop
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.optimizer.num_skipped == 4


def test_adam_takes_over_with_a_warning_where_steps_are_not_finite(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(step: int, model: nn.Module) -> None:
        if 1 <= step <= 3:
            given = model.get_parameter("0.weight").grad
            assert given is not None
            given.fill_(torch.inf)

    fused, plain = twins(fused_device)
    fused.train(6, spoil=spoil)
    with warnings.catch_warnings(record=True) as seen:  # here, or when a GPU had told before
        warnings.simplefilter("always", haltwise.FitWarning)
        assert fused.optimizer.num_skipped == 3
    (warned,) = [*fused.warned, *(str(warning.message) for warning in seen)]
    assert "at step 1, as steps are not finite" in warned
    monkeypatch.setenv("HALTWISE_KERNEL", "")
    plain.train(6, spoil=spoil)
    assert_alike(fused, plain)


def test_a_state_goes_over_in_both_directions(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, plain = twins(fused_device)
    train_both(monkeypatch, fused, plain, 3)
    one, other = fused.optimizer.state_dict(), plain.optimizer.state_dict()
    fused.optimizer.load_state_dict(other)
    plain.optimizer.load_state_dict(one)
    train_both(monkeypatch, fused, plain, 2)
    assert_alike(fused, plain)


def test_tensors_in_another_order_of_memory_move_alike(fused_device: torch.device) -> None:
    def moved(*, transposed: bool) -> Tensor:
        weight = torch.linspace(-1, 1, 12).view(3, 4).to(fused_device)
        grad = torch.linspace(1, 3, 12).view(3, 4).sin().to(fused_device)
        if transposed:
            weight, grad = weight.T.contiguous().T, grad.T.contiguous().T
        param = nn.Parameter(weight)
        optimizer = LearnedOptimizer([param], "regression-10d", guard=False)
        for _ in range(2):
            param.grad = grad.clone()
            optimizer.step()
        assert param.is_contiguous() is not transposed
        return param.detach()

    assert torch.equal(moved(transposed=True), moved(transposed=False))


def test_taking_the_last_update_back_restores_the_parameters(fused_device: torch.device) -> None:
    param = nn.Parameter(torch.ones(6, device=fused_device))
    optimizer = LearnedOptimizer([param], "regression-10d", price=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", haltwise.FitWarning)
        param.grad = torch.full_like(param, 1e-3)
        optimizer.step(loss=1.0)
        assert optimizer.should_stop
        taken = optimizer.take_back()
    assert torch.equal(param, torch.ones_like(param)) is taken


def test_what_was_read_is_not_read_again(fused_device: torch.device) -> None:
    run = Run(fused_device)
    run.train(2)
    assert run.optimizer.steps_taken == 2
    fused = run.optimizer._on_device._steps
    assert fused is not None
    fused._was_captured = True  # from then on the device may be ahead at any time
    run.optimizer._moved.clear()
    assert fused.read() == []
    assert run.optimizer.steps_taken == 2
    assert not run.optimizer._moved
    run.train(1)
    assert run.optimizer.steps_taken == 3
    assert run.optimizer._moved


@pytest.mark.parametrize("before", [torch.float32, torch.bfloat16])
def test_a_converted_parameter_goes_back_to_where_it_was(
    fused_device: torch.device, before: torch.dtype
) -> None:
    after = torch.bfloat16 if before is torch.float32 else torch.float32
    moved, frozen = (nn.Parameter(torch.full((3,), size).to(fused_device)) for size in (1.5, 2.5))
    optimizer = LearnedOptimizer([moved, frozen])
    for step in range(4):
        kind = after if step else before  # a single bad step would be skipped
        for param, sees in ((moved, True), (frozen, step == 0)):
            param.data, param.grad = param.data.to(kind), None
            param.grad = torch.full_like(param, torch.nan if step else 1.0) if sees else None
        optimizer.step(loss=1.0)
    with pytest.warns(haltwise.FitWarning, match="steps are not finite"):
        assert optimizer.num_skipped == 3
    assert moved.tolist() == [1.5] * 3
    assert frozen.tolist() == [2.5] * 3
    copies = [optimizer.state[param]["guard.params"] for param in (moved, frozen)]
    assert [copy.dtype for copy in copies] == [after, after]


def test_what_is_taken_back_decayed_as_it_did_at_that_step(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler has changed the rate since the kernels' plan was made."""
    monkeypatch.setattr(optimizer_of_torch, "keeps_update", lambda problem: False)
    param = nn.Parameter(torch.linspace(-1, 1, 6, device=fused_device))
    optimizer = LearnedOptimizer([param], "regression-10d", weight_decay=0.1)
    seen = torch.tensor([1.0, 1, 1, 1, 1, 0], device=fused_device)  # one never has a gradient
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 1.0 if step < 3 else 0.2
        optimizer.zero_grad()
        loss = (param * seen - 1).square().sum()
        torch.autograd.backward(loss)
        before = param.detach().clone()
        optimizer.step(loss=loss.detach())
    assert optimizer.take_back()
    torch.testing.assert_close(param.detach(), before, rtol=1e-5, atol=1e-6)


def test_a_step_that_ends_midway_forgets_none_before_it(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused_steps = pytest.importorskip("haltwise.interfaces.torch_optim.fused.steps")

    def trained(*, fails: bool) -> tuple[int, bool]:
        params = [nn.Parameter(torch.linspace(-1, 1, n, device=fused_device)) for n in (6, 5)]
        optimizer = LearnedOptimizer(params, "regression-10d")

        def step(number: int) -> None:
            optimizer.zero_grad()
            loss = torch.stack([(param - 1).square().sum() for param in params[:number]]).sum()
            torch.autograd.backward(loss)
            optimizer.step(loss=loss.detach())

        for _ in range(5):
            step(2)
        if fails:  # where a new plan is needed, as one tensor has no gradient
            with monkeypatch.context() as patch:
                patch.setattr(fused_steps, "Plan", mock.Mock(side_effect=MemoryError))
                with pytest.raises(MemoryError):
                    step(1)
        step(1)
        return optimizer.steps_taken, optimizer.should_stop

    assert trained(fails=True) == trained(fails=False)
