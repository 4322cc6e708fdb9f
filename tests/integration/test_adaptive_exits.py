"""Exits of a network as recorded runs, and halting models in place of the layer's own head."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from draws import seeded
from torch import Tensor, nn

from haltwise import DataWarning, FitWarning, HaltingModel, InputError
from haltwise.halting import HalterSettings
from haltwise.models import Card, Choice
from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveProcess,
    ItemStep,
    Pondered,
    RecurrentCell,
)
from haltwise.processes import Trajectory
from haltwise.processes.signals import SIGNALS
from haltwise.recordings.runs import RecordedRuns, save_trajectory
from haltwise.stop_rules import (
    CostUnit,
    FixedBudget,
    HazardThreshold,
    Logistic,
    Plateau,
    ReturnedIterate,
    StopPolicy,
    calibrate,
    costs,
    decisions,
)


def entropy(outputs: Tensor) -> Tensor:
    found: Tensor = torch.distributions.Bernoulli(logits=outputs.sum(-1)).entropy()
    return found


@pytest.fixture
def layer() -> AdaptiveComputation:
    torch.manual_seed(0)
    return AdaptiveComputation(RecurrentCell(nn.GRUCell(3 + 1, 5), 6))


@pytest.fixture
def inputs() -> Tensor:
    return 3 * torch.randn(60, 3, generator=seeded())


def recorded(layer: AdaptiveComputation, inputs: Tensor) -> Trajectory:
    with torch.no_grad():
        pondered: Pondered = layer(inputs, 0.1)
    losses = pondered.outputs.square().sum(-1)
    return pondered.trajectory(losses, entropy(pondered.outputs))


def test_saved_exits_are_the_runs_that_a_monitor_learns_from(
    layer: AdaptiveComputation, inputs: Tensor, tmp_path: Path
) -> None:
    trajectory = recorded(layer, inputs)
    save_trajectory(tmp_path / "runs", trajectory)
    loaded = RecordedRuns.load(tmp_path / "runs")
    assert (loaded.observed, loaded.maximizes) == ("loss", False)
    found = loaded.trajectory
    assert (found.num_items, found.num_steps) == (60, 5)
    for name in ("loss", "excess", "log_grad_norm", "signals"):
        torch.testing.assert_close(found.known(name), trajectory.known(name))
    assert torch.equal(found.known("signals")[..., SIGNALS.index("step")][0], torch.arange(5.0))
    with pytest.raises(InputError, match=r"there is a run .* already"):
        save_trajectory(tmp_path / "runs", trajectory)
    broken = replace(trajectory, excess=trajectory.excess / 0)
    with pytest.raises(InputError, match="does not stay finite"):
        save_trajectory(tmp_path / "other", broken)
    large = replace(trajectory, excess=trajectory.excess.double() + 1e39)
    with pytest.raises(InputError, match=r"item \[0\] does not stay finite in float32"):
        save_trajectory(tmp_path / "other", large)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("sizes", [None, [8], [16, 32]])
def test_a_model_in_place_of_the_head_decides_as_on_the_recording(
    layer: AdaptiveComputation, inputs: Tensor, sizes: list[int] | None
) -> None:
    card = Card(
        method=Choice("stick-breaking"),
        price=0.1,
        horizon=5,
        halter=HalterSettings(width=5, memory=4),
    )
    model = HaltingModel(card, generator=seeded(1))
    assert model.halter is not None
    nn.init.normal_(model.halter.weights[-1], std=0.5, generator=seeded(2))
    trajectory = model.attach(recorded(layer, inputs), 0.1)
    logits = trajectory.known("hazard_logits")[..., 0]
    rule = HazardThreshold(logits.median().item())
    executed = layer.run(inputs, 0.1, model=model, rule=rule, observe=entropy, sizes=sizes)
    assert torch.equal(executed.exits, decisions(rule, trajectory))
    assert len(set(executed.exits.tolist())) > 2


def test_a_model_without_a_rule_stops_as_it_was_calibrated(
    layer: AdaptiveComputation, inputs: Tensor
) -> None:
    halter = HalterSettings(width=5, memory=4)
    card = Card(method=Choice("stick-breaking"), price=0.1, horizon=5, halter=halter)
    rule = Plateau(0.02)
    policies = {CostUnit.UPDATES: StopPolicy(rule, ReturnedIterate.CURRENT)}
    model = HaltingModel(replace(card, policies=policies), generator=seeded(1))
    executed = layer.run(inputs, 0.1, model=model, observe=entropy)
    assert torch.equal(executed.exits, decisions(rule, recorded(layer, inputs)))
    assert len(set(executed.exits.tolist())) > 2
    with pytest.raises(InputError, match="do not know when to stop yet"):
        layer.run(inputs, 0.1, model=HaltingModel(card, generator=seeded(1)), observe=entropy)


@pytest.mark.parametrize("price", [0.01, 1.0])
def test_a_price_that_a_model_does_not_know_is_warned_of(
    layer: AdaptiveComputation, inputs: Tensor, price: float
) -> None:
    """As wherever else a model stops what it is given by its own policy."""
    card = Card(
        method=Choice("stick-breaking"),
        price=0.1,
        price_range=2.0,
        horizon=5,
        halter=HalterSettings(width=5, memory=4),
        policies={CostUnit.UPDATES: StopPolicy(HazardThreshold(), ReturnedIterate.CURRENT)},
    )
    model = HaltingModel(card, generator=seeded(1))
    with pytest.warns(FitWarning, match=r"know prices from 0.05 to 0.2, but 60 of 60"):
        layer.run(inputs, price, model=model, observe=entropy)
    layer.run(inputs, 0.15, model=model, observe=entropy)  # warnings are errors
    layer.run(inputs, price, model=model, rule=HazardThreshold(), observe=entropy)


COSTS = [1.0, 2.0, 3.0, 4.0, 5.0, 29.0]


def with_costs(layer: AdaptiveComputation, costs: list[float]) -> AdaptiveComputation:
    layer.process.exit_costs.copy_(torch.tensor(costs))
    return layer


def test_stops_are_judged_by_what_exits_cost(layer: AdaptiveComputation, inputs: Tensor) -> None:
    """The record, at the price of a mean step, differs from loss and cost by a constant."""
    price = 0.004
    with torch.no_grad():
        pondered: Pondered = with_costs(layer, COSTS)(inputs, price)
    losses = 1 / (1 + torch.arange(6.0)) + 0.001 * pondered.outputs.square().sum(-1)
    found = pondered.trajectory(losses, entropy(pondered.outputs), charged=True)
    assert pondered.step_cost.item() == pytest.approx(28 / 5)
    step_price = price * pondered.step_cost.item()
    table, due = costs(found.excess, step_price), losses + price * torch.tensor(COSTS)
    torch.testing.assert_close(table - table[:, :1], due - due[:, :1])
    torch.testing.assert_close(found.loss, entropy(pondered.outputs))
    chosen = calibrate(FixedBudget, found, price=step_price).policy.rule
    assert chosen == FixedBudget(int(due.mean(0).argmin()))
    plain = pondered.trajectory(losses, entropy(pondered.outputs), charged=False)
    assert chosen != calibrate(FixedBudget, plain, price=step_price).policy.rule


def test_a_record_of_exits_that_are_not_equally_far_apart_says_what_it_counts(
    layer: AdaptiveComputation, inputs: Tensor
) -> None:
    plain = recorded(layer, inputs)
    with pytest.warns(DataWarning, match="not equally far apart.* charged=True"):
        found = recorded(with_costs(layer, COSTS), inputs)
    assert torch.equal(found.excess, plain.excess)
    even = recorded(with_costs(layer, [10 * cost for cost in range(3, 9)]), inputs)
    assert torch.equal(even.excess, plain.excess)
    with torch.no_grad():
        pondered: Pondered = layer(inputs, 0.1)
    losses = pondered.outputs.square().sum(-1)
    for charged in (True, False):  # there is no difference
        assert torch.equal(pondered.trajectory(losses, charged=charged).excess, losses)
        with_costs(layer, COSTS)
    found = layer(inputs, 0.1).trajectory(losses, charged=False)
    assert torch.equal(found.excess, losses)


def test_a_model_is_asked_at_the_price_of_a_step(
    layer: AdaptiveComputation, inputs: Tensor
) -> None:
    """It learned from records, a step of which is a step; the layer's price is that of a unit."""
    halter = HalterSettings(width=5, memory=4)
    card = Card(Choice("stick-breaking"), price=1.0, price_range=3.0, horizon=5, halter=halter)
    model = HaltingModel(card, generator=seeded(1))
    assert model.halter is not None
    nn.init.normal_(model.halter.weights[-1], std=0.5, generator=seeded(2))
    with_costs(layer, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    trajectory = model.attach(recorded(layer, inputs), 2.0)
    rule = HazardThreshold(trajectory.known("hazard_logits")[..., 0].median().item())
    policies = {CostUnit.UPDATES: StopPolicy(rule, ReturnedIterate.CURRENT)}
    model.card = replace(card, policies=policies)
    executed = layer.run(inputs, 0.2, model=model, observe=entropy)
    assert torch.equal(executed.exits, decisions(rule, trajectory))
    assert len(set(executed.exits.tolist())) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_reads_networks_of_any_precision(
    layer: AdaptiveComputation, inputs: Tensor, dtype: torch.dtype
) -> None:
    halter = HalterSettings(width=5, memory=4)
    card = Card(Choice("stick-breaking"), price=0.1, horizon=5, halter=halter)
    model = HaltingModel(card, generator=seeded(1))
    assert model.halter is not None
    nn.init.normal_(model.halter.weights[-1], std=0.5, generator=seeded(2))
    logits = model.attach(recorded(layer, inputs), 0.1).known("hazard_logits")[..., 0]
    rule = HazardThreshold(logits.median().item())
    due = layer.run(inputs, 0.1, model=model, rule=rule, observe=entropy)
    found = layer.to(dtype).run(inputs.to(dtype), 0.1, model=model, rule=rule, observe=entropy)
    assert found.output.dtype == dtype
    assert (found.exits == due.exits).float().mean() > (0.95 if dtype == torch.float64 else 0.5)
    judged = model.attach(recorded(layer, inputs.to(dtype)), 0.1)
    assert judged.known("hazard_logits").dtype == torch.float32


class Given(AdaptiveProcess):
    """Rows [n, T+1] of what exits return, which no precision changes."""

    num_features = 1

    def init(self, inputs: Any) -> dict[str, Tensor]:
        return {"inputs": inputs}

    def step(
        self, step: int | Tensor, state: dict[str, Tensor], active: Tensor | None = None
    ) -> ItemStep:
        output = state["inputs"][:, step]
        return ItemStep(output, output.unsqueeze(1), state)


@pytest.mark.parametrize("kernel", ["auto", "plain"])
def test_a_model_decides_under_autocast_as_without(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever computes it: on machines without a compiler it decided in half precision."""
    if kernel == "plain":
        monkeypatch.setenv("HALTWISE_KERNEL", "plain")
    halter = HalterSettings(width=16, memory=8)
    model = HaltingModel(
        Card(Choice("stick-breaking"), price=0.1, horizon=5, halter=halter), generator=seeded(1)
    )
    assert model.halter is not None
    nn.init.normal_(model.halter.weights[-1], std=0.5, generator=seeded(2))
    rows, layer = torch.rand(2000, 6, generator=seeded()), AdaptiveComputation(Given(6))
    trajectory = model.attach(layer(rows, 0.1).trajectory(rows, rows), 0.1)
    rule = HazardThreshold(trajectory.known("hazard_logits")[..., 0].quantile(0.8).item())

    def exits() -> Tensor:
        return layer.run(rows, 0.1, model=model, rule=rule, observe=lambda outputs: outputs).exits

    due = exits()
    assert len(due.unique()) > 2
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exits(), due)


def test_rules_of_losses_decide_as_on_the_recording(
    layer: AdaptiveComputation, inputs: Tensor
) -> None:
    trajectory = recorded(layer, inputs)
    rule = Logistic((0.0, 0.0, -4.0, 0.0), 0.0)
    executed = layer.run(inputs, 0.1, rule=rule, observe=entropy)
    assert torch.equal(executed.exits, decisions(rule, trajectory))
