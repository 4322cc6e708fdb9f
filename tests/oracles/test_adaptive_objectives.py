"""Objectives of the adaptive layer: their units, and items that say nothing about others."""

import math
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn

from haltwise import InputError
from haltwise.halting import Graves, HaltingMethod, Softmax, StickBreaking
from haltwise.nn import AdaptiveComputation, Coupling, LayerStack, Pondered


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
