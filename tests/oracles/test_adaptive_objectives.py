"""Objectives of the adaptive layer: their units, and items that say nothing about others."""

import copy
import math
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from test_adaptive_layer import WithoutExits
from torch import Tensor, nn

from haltwise import DataWarning, InputError
from haltwise.halting import (
    Graves,
    HaltingExamples,
    HaltingMethod,
    Softmax,
    StickBreaking,
)
from haltwise.nn import (
    AdaptiveComputation,
    Coupling,
    LayerStack,
    Pondered,
    RepeatedBlock,
    TransformerBlock,
)
from haltwise.stop_rules import FixedBudget, HazardThreshold, Patience


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(), dtype=DOUBLE)


def pondered(
    method: Any = "stick-breaking",
    coupling: str = "expected-loss",
    *,
    costs: list[float] | None = None,
) -> Pondered:
    """Six items at four exits, whose laws differ."""
    torch.manual_seed(0)
    stack = LayerStack([nn.Linear(3, 3) for _ in range(4)], 3, costs=costs)
    layer = AdaptiveComputation(stack, method, coupling)
    nn.init.normal_(layer.head.readout.weight, generator=seeded(1))
    prices = torch.logspace(-3, 0, 6, dtype=DOUBLE)
    found: Pondered = layer.double()(randn(6, 3), prices, generator=seeded(2))
    return found


METHODS: list[HaltingMethod] = [
    Graves(),
    Softmax(),
    Softmax(temperature=0.5),
    Softmax(temperature_per_price=7.0, continuation=None),
    StickBreaking(),
    StickBreaking(learn_by="value"),
    StickBreaking(learn_by="distillation", final_temperature=2.0),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("costs", [None, [2.0, 3.0, 7.0, 30.0]])
def test_a_loss_that_is_higher_by_one_costs_one_more(
    method: HaltingMethod, costs: list[float] | None
) -> None:
    """In units of the loss, at every price: so items at dear prices count as those at cheap."""
    found, losses = pondered(method, costs=costs), randn(6, 4).square()
    due = found.objective(losses) + 1
    torch.testing.assert_close(found.objective(losses + 1), due, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("coupling", Coupling)
def test_no_rows_have_no_objective_and_no_gradient(
    method: HaltingMethod, coupling: Coupling
) -> None:
    """As where a batch is routed by what is in it."""
    stack = LayerStack([nn.Linear(3, 3) for _ in range(4)], 3)
    layer = AdaptiveComputation(stack, method, coupling).double()
    found: Pondered = layer(randn(0, 3), 0.1, generator=seeded(2))
    every = coupling is Coupling.EXPECTED_LOSS
    objective = found.objective((found.outputs if every else found.output).sum(-1))
    assert objective.shape == (0,)
    objective.sum().backward()
    for weight in layer.parameters():
        assert weight.grad is None or not weight.grad.any()


@pytest.mark.parametrize("coupling", Coupling)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_no_number_disturbs_no_other_item(coupling: Coupling, wrong: float) -> None:
    """Drawn exits learn from the mean loss of the others; it is that of those that have one."""
    found, every = pondered(coupling=coupling), coupling is Coupling.EXPECTED_LOSS
    losses = randn(6, 4).square() if every else randn(6).square()
    broken = losses.clone()
    broken[2] = wrong
    others = torch.arange(6) != 2
    logits = found.halting["hazard_logits"]

    def slopes(objective: Tensor) -> Tensor:
        return torch.autograd.grad(objective[others].sum(), logits, retain_graph=True)[0][others]

    objective = found.objective(broken)
    assert not objective[2].isfinite()
    torch.testing.assert_close(objective[others], found.objective(losses)[others])
    if coupling is not Coupling.SAMPLED:
        torch.testing.assert_close(slopes(objective), slopes(found.objective(losses)))
        return
    assert found.drawn is not None
    total = (losses + found.price * found.exit_costs[found.drawn])[others].detach()
    baseline = (total.sum() - total) / 4
    log_prob = found.log_prob.gather(1, found.drawn.unsqueeze(1)).squeeze(1)[others]
    (due,) = torch.autograd.grad(((total - baseline) * log_prob).sum(), logits, retain_graph=True)
    torch.testing.assert_close(slopes(objective), due[others])


@pytest.mark.parametrize("progress", [300, -0.1, math.nan, "half", torch.ones(2)])
def test_a_share_of_the_training_is_one(progress: Any) -> None:
    with pytest.raises(InputError, match="progress must be"):
        pondered().objective(torch.ones(6, 4, dtype=DOUBLE), progress=progress)


def part(whole: Pondered, rows: slice) -> Pondered:
    """What is known of some rows, as a batch of their own has it."""
    own = {
        name: None if value is None else value[rows]
        for name in ("outputs", "price", "drawn", "present")
        for value in [getattr(whole, name)]
    }
    halting = {name: value[rows] for name, value in whole.halting.items()}
    return whole._replace(**own, halting=halting)  # type: ignore[arg-type]


def padded() -> Pondered:
    torch.manual_seed(0)
    block = RepeatedBlock(TransformerBlock(8, 2), 8, 3, per="token")
    padding = torch.arange(5) >= torch.tensor([[5], [2], [4], [1]])
    found: Pondered = AdaptiveComputation(block).double()(
        {"tokens": randn(4, 5, 8), "padding": padding}, 0.1
    )
    return found


@pytest.mark.parametrize("coupling", [*Coupling, "padded"])
@pytest.mark.parametrize("cut", [1, 2])
def test_batches_one_after_the_other_are_the_whole(coupling: str, cut: int) -> None:
    whole = padded() if coupling == "padded" else pondered(coupling=coupling)
    joined = Pondered.cat([part(whole, slice(0, cut)), part(whole, slice(cut, None))])
    like = whole.log_prob if coupling in ("expected-loss", "padded") else whole.price
    losses = randn(*like.shape)
    assert torch.equal(joined.exits, whole.exits)
    assert torch.equal(joined.output, whole.output)
    assert torch.equal(joined.objective(losses), whole.objective(losses))
    stacked = Pondered.stack([whole, whole])
    assert torch.equal(stacked.exits, torch.stack([whole.exits] * 2))
    assert torch.equal(stacked.expected_cost, torch.stack([whole.expected_cost] * 2))


def test_batches_with_padding_and_without_are_joined() -> None:
    whole = padded()
    first = part(whole, slice(0, 1))._replace(present=None)  # all of its tokens are
    joined = Pondered.cat([first, part(whole, slice(1, None))])
    assert torch.equal(joined.exits, whole.exits)
    with pytest.raises(InputError, match="in all of them or in none"):
        Pondered.cat([pondered(coupling="sampled"), pondered()])


def test_exits_are_those_of_rules_that_read_the_head() -> None:
    """Losses are not known, and a rule that reads them had stopped by zeros."""
    found = pondered()
    assert found.exits_by(FixedBudget(2)).tolist() == [2] * 6
    assert torch.equal(found.exits_by(FixedBudget(9) | HazardThreshold()), found.exits)
    for rule in (Patience(1), FixedBudget(2) | Patience(1)):
        with pytest.raises(InputError, match="reads a loss, but none is known here; take"):
            found.exits_by(rule)


def test_a_coupling_that_is_set_is_one() -> None:
    """Its name had been taken for none of them, in silence."""
    torch.manual_seed(0)
    stack = LayerStack([nn.Linear(3, 3) for _ in range(4)], 3)
    layer = AdaptiveComputation(stack)
    named: Any = layer
    named.coupling = "sampled"
    assert layer.coupling is Coupling.SAMPLED
    drawn = layer(torch.randn(50, 3), 0.1)
    assert drawn.drawn is not None
    assert len(layer.run(torch.randn(500, 3), 0.1).exits.unique()) == 4
    with pytest.raises(InputError, match="coupling must be one of expected-loss"):
        named.coupling = "mean"
    tokens: Any = AdaptiveComputation(LayerStack([nn.Linear(3, 3)] * 2, 3, per="token"))
    with pytest.raises(InputError, match="see each other"):
        tokens.coupling = Coupling.SAMPLED
    assert copy.deepcopy(layer).coupling is Coupling.SAMPLED


class MeanOfAll(WithoutExits):
    """A method of the caller's whose objective is one number, not one for each item."""

    def exit_objective(self, examples: HaltingExamples) -> Tensor:
        return examples.excess.mean()


def test_an_objective_that_is_not_one_of_each_item_is_named() -> None:
    with pytest.raises(InputError, match=r"MeanOfAll.exit_objective must return .* shape \[6\]"):
        pondered(MeanOfAll()).objective(torch.ones(6, 4, dtype=DOUBLE))


def test_costs_that_a_state_replaces_are_told() -> None:
    def built(costs: list[float] | None) -> LayerStack:
        return LayerStack([nn.Linear(2, 2) for _ in range(3)], 2, costs=costs)

    layer = built([0.1, 0.2, 0.7])
    with pytest.warns(DataWarning, match=r"exits that cost \[1.0, 2.0, 3.0\], which replace those"):
        layer.load_state_dict(built(None).state_dict())
    assert layer.exit_costs.tolist() == [1, 2, 3]
    layer.load_state_dict(built(None).double().state_dict())  # the same, and no warning
    layer.load_state_dict(built([0.1, 0.2, 0.7]).state_dict())  # none in the place of what is usual
    with torch.device("meta"):
        empty = built(None)
    empty.load_state_dict(built([0.1, 0.2, 0.7]).state_dict(), assign=True)
    torch.testing.assert_close(empty.exit_costs, torch.tensor([0.1, 0.2, 0.7]))
    with pytest.raises(RuntimeError, match="size mismatch for exit_costs"):
        layer.load_state_dict(LayerStack([nn.Linear(2, 2) for _ in range(2)], 2).state_dict())
