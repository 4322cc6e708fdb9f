"""The kernels of the rule `mlp` against the steps that the library takes elsewhere, in float64."""

import warnings
from typing import Any, NamedTuple

import pytest
import torch
from fused import Run, assert_alike, fused_device, train_both, twins
from random_models import random_model
from torch import Tensor, nn

from haltwise import FitWarning, LearnedOptimizer
from haltwise.update_rules import MLPRule

__all__ = ["fused_device"]

EXACT = 1e-6  # of float32 beside float64, relative to a whole group
OWN = {"weights": "small-networks"}
SIZES = ((7,), (1,), (530,), (3, 5))  # the third makes two chunks


class Trained(NamedTuple):
    """Groups of tensors of odd sizes, which have taken some steps."""

    optimizer: LearnedOptimizer
    params: list[nn.Parameter]

    @property
    def is_fused(self) -> bool:
        return self.optimizer._on_device._steps is not None

    @property
    def groups(self) -> list[dict[str, Tensor]]:
        """All that is kept of each group's coordinates, in one tensor of each name, on the CPU."""
        saved = self.optimizer.state_dict()
        found = []
        for group in saved["param_groups"]:
            states = [saved["state"][number] for number in group["params"]]
            names = [name for name in states[0] if name != "group"]
            kept = {name: [state[name] for state in states] for name in names}
            kept["params"] = [self.params[number].detach() for number in group["params"]]
            found.append(
                {
                    name: torch.cat([value.double().flatten() for value in values]).cpu()
                    for name, values in kept.items()
                }
            )
        return found

    @property
    def records(self) -> list[dict[str, Any]]:
        state = self.optimizer.state_dict()["state"]
        return [entry["group"][0] for entry in state.values() if "group" in entry]


def trained(
    device: torch.device,
    dtype: torch.dtype,
    *,
    weights: Any = "small-networks",
    other: Any = "small-networks",
    steps: int = 5,
    **options: Any,
) -> Trained:
    """After some steps; the first gradient is zero, and a tensor has none in the third."""
    generator = torch.Generator().manual_seed(4)
    values = [torch.randn(size, generator=generator) for size in SIZES]
    params = [nn.Parameter(value.to(device, dtype)) for value in values]
    groups = [
        {"params": params[:3], "weights": weights, "weight_decay": 0.05, "lr": 0.5},
        {"params": params[3:], "weights": other, "maximize": True},
    ]
    optimizer = LearnedOptimizer(groups, **options)
    for step in range(steps):
        for param in params:
            grad = min(step, 1) * 0.1 * torch.randn(param.shape, generator=generator)
            param.grad = grad.to(device, dtype)
        if step == 2:
            params[0].grad = None
        with warnings.catch_warnings():  # the second group maximizes a loss that is above 0
            warnings.simplefilter("ignore", FitWarning)
            optimizer.step(loss=1 - 0.1 * step)
    return Trained(optimizer, params)


def test_steps_and_states_agree_with_float64(fused_device: torch.device) -> None:
    fused = trained(fused_device, torch.float32, other="regression-10d")  # an LSTM
    plain = trained(torch.device("cpu"), torch.float64, other="regression-10d")
    assert fused.is_fused
    assert not plain.is_fused
    for own, other in zip(fused.groups, plain.groups, strict=True):
        assert own.keys() == other.keys()
        for name, value in other.items():
            assert (own[name] - value).norm() <= EXACT * value.norm(), name
    assert fused.groups[0]["rule.count"].tolist() == [3, 4, 4]
    for one, two in zip(fused.records, plain.records, strict=True):
        assert {name: one[name] for name in ("step", "skipped", "judged")} == {
            name: two[name] for name in ("step", "skipped", "judged")
        }
        assert one["guard"] == pytest.approx(two["guard"], rel=1e-6)
        for name, value in two["outputs"].items():
            assert torch.allclose(one["outputs"][name].double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden_size", [5, 33])
def test_any_number_of_hidden_units_is_moved_alike(
    fused_device: torch.device, hidden_size: int
) -> None:
    model = random_model("mlp", hidden_size=hidden_size, horizon=100)
    rule, generator = model.rule, torch.Generator().manual_seed(1)
    assert isinstance(rule, MLPRule)
    with torch.no_grad():
        for weight in rule.parameters():  # far from Adam
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    options: dict[str, Any] = {"guard": False, "weights": model, "steps": 4}
    fused = trained(fused_device, torch.float32, **options)
    plain = trained(torch.device("cpu"), torch.float64, **options)
    assert fused.is_fused
    for name, value in plain.groups[0].items():
        assert (fused.groups[0][name] - value).norm() <= 4 * EXACT * value.norm(), name


@pytest.mark.parametrize(
    "options",
    [
        {"options": OWN | {"maximize": True, "guard": False}},
        {"options": OWN, "dtype": torch.bfloat16},
        {"options": OWN | {"lr": 1e38}},  # updates overflow
    ],
    ids=["maximize", "bfloat16", "overflow"],
)
def test_options_do_the_same(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    fused, plain = twins(fused_device, **options)
    train_both(monkeypatch, fused, plain, 4)
    tolerance = 0.02 if "dtype" in options else 1e-4 * max(options["options"].get("lr", 1), 1)
    assert_alike(fused, plain, tolerance, 0.02 if "dtype" in options else 1e-3)


def test_states_in_bfloat16_are_those_of_steps_taken_elsewhere(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = trained(fused_device, torch.float32, state_dtype=torch.bfloat16)
    monkeypatch.setenv("HALTWISE_KERNEL", "")
    plain = trained(torch.device("cpu"), torch.float32, state_dtype=torch.bfloat16)
    for own, other in zip(fused.groups, plain.groups, strict=True):
        for name, value in other.items():
            assert (own[name] - value).norm() <= 2e-3 * value.norm(), name
    state = fused.optimizer.state[fused.params[1]]  # of a single entry
    assert state["rule.momenta"].dtype is torch.bfloat16
    assert state["rule.count"].dtype is state["rule.log_unit"].dtype is torch.float32


def test_a_state_goes_over_in_both_directions(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, plain = twins(fused_device, options=OWN)
    train_both(monkeypatch, fused, plain, 3)
    one, other = fused.optimizer.state_dict(), plain.optimizer.state_dict()
    fused.optimizer.load_state_dict(other)
    plain.optimizer.load_state_dict(one)
    train_both(monkeypatch, fused, plain, 2)
    assert_alike(fused, plain)


def test_adam_takes_over_and_goes_back_to_the_start(
    fused_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, plain = twins(fused_device, options=OWN)
    train_both(monkeypatch, fused, plain, 5, rise=3)
    (record,) = fused.records
    assert record["guard"]["adam"] > 0
    assert record["guard"]["gained"] == 0  # so it began anew
    assert_alike(fused, plain)


def test_taking_the_last_update_back_restores_the_parameters(fused_device: torch.device) -> None:
    param = nn.Parameter(torch.ones(6, device=fused_device))
    optimizer = LearnedOptimizer([param], "small-networks", price=0.03)
    for _ in range(60):
        before = param.detach().clone()
        param.grad = torch.full_like(param, 1e-3)
        optimizer.step(loss=0.1)
        if optimizer.should_stop:
            break
    assert not torch.allclose(param, before, atol=1e-6)
    assert optimizer.should_stop
    assert optimizer.take_back()
    assert torch.allclose(param, before, rtol=0, atol=1e-7)


def test_networks_too_wide_for_the_kernels_are_moved_elsewhere(fused_device: torch.device) -> None:
    run = Run(fused_device, {"weights": random_model("mlp", hidden_size=65)})
    run.train(1)
    assert run.optimizer._on_device._steps is None
    assert run.optimizer.steps_taken == 1
