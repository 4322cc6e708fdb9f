"""What the trainer minimises against sums over everything that may happen."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from haltwise.halting.halter import AFTER, BEFORE, HaltingOutput
from haltwise.halting.objectives import continuation_value, distillation
from haltwise.models.optimizer_model import OptimizerModel, ModelConfig
from haltwise.training import POSTERIORS, TrainingConfig
from haltwise.training.objective import MetaObjective

DOUBLE = torch.float64
B, T = 4, 6
PRICE = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=DOUBLE)
TAU = 0.7  # of the hazard, in prices


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def said() -> HaltingOutput:
    return HaltingOutput(randn(B, T, 2, seed=2), 2 * randn(B, T, 2, seed=3), randn(B, T, seed=4))


def objective(**settings: object) -> MetaObjective:
    changes = {"horizon": T, "price": 0.3, **settings}
    config = replace(TrainingConfig(), **changes)  # type: ignore[arg-type]
    return MetaObjective(config, OptimizerModel(ModelConfig(), seeded()).double())


EXCESS = 3 * randn(B, T + 1, seed=5).exp()


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def free_energies(problem: int) -> tuple[float, float]:
    """Of both accounts: sums over stops and over what is then returned, in prices."""
    price, losses = PRICE[problem].item(), EXCESS[problem].tolist()
    hazards = said().hazard_logits[problem].sigmoid().tolist()
    holds = said().hold_logits[problem].tolist()
    tau, updates, gradients = TAU * price, 0.0, 0.0
    left = 1.0
    for t in range(T + 1):  # a stop at t returns theta_t at t prices
        stops = hazards[t][AFTER] if t < T else 1.0
        prob = left * stops
        updates += prob * (losses[t] + price * t + tau * math.log(prob))
        left -= prob
    left = 1.0
    for t in range(T):  # one that has paid for gamma_t may hold theta_t or take theta_{t+1}
        stops = hazards[t][BEFORE] if t < T - 1 else 1.0
        for end, share in ((t, sigmoid(holds[t])), (t + 1, sigmoid(-holds[t]))):
            prob = left * stops * share
            gradients += prob * (losses[end] + price * t + tau * math.log(prob))
        left *= 1 - stops
    return updates / price, gradients / price


def test_the_free_energy_is_the_sum_over_stops_and_what_they_return() -> None:
    meta = objective(posterior="stick-breaking")
    found = meta.halting(EXCESS, said(), PRICE, TAU, seeded(), distilled=False)
    for problem in range(B):
        expected = sum(free_energies(problem)) / 2
        assert found[problem].item() == pytest.approx(expected, rel=1e-12)


def test_holding_is_least_at_the_tempered_better_of_both_ends() -> None:
    """log-odds of holding = (f_{t+1} - f_t) / tau, whatever the hazards."""
    output = said()
    tau = (TAU * PRICE).unsqueeze(1)
    best = ((EXCESS[:, 1:] - EXCESS[:, :-1]) / tau).requires_grad_()
    meta = objective(posterior="stick-breaking")
    held = output._replace(hold_logits=best)
    value = meta.halting(EXCESS, held, PRICE, TAU, seeded(), distilled=False)
    (slope,) = torch.autograd.grad(value.sum(), best)
    assert slope.abs().max() < 1e-10
    other = meta.halting(EXCESS, output, PRICE, TAU, seeded(), distilled=False)
    assert (other > value).all()


def optimum(losses: Tensor) -> Tensor:
    """The least free energy of stopping at one of the steps, in prices: a soft minimum."""
    steps = torch.arange(losses.shape[1], dtype=DOUBLE)
    prices = (losses / PRICE.unsqueeze(1) + steps) / TAU
    return -TAU * (-prices).exp().sum(1).log()


def test_a_free_energy_is_distilled_first() -> None:
    first = objective(posterior="stick-breaking").halting(EXCESS, said(), PRICE, TAU, seeded())
    meta = objective(posterior="stick-breaking", hazard_objective="distillation")
    assert torch.equal(first, meta.halting(EXCESS, said(), PRICE, TAU, seeded()))


@pytest.mark.parametrize("name", ["distillation", "value"])
def test_the_other_objectives_of_the_hazard_learn_from_the_same_stops(name: str) -> None:
    """Counting gradients, what a stop is worth is the held or taken end, as the head mixes them."""
    meta = objective(posterior="stick-breaking", hazard_objective=name)
    found = meta.halting(EXCESS, said(), PRICE, TAU, seeded())
    hold, tau = said().hold_logits.sigmoid(), (TAU * PRICE).unsqueeze(1)
    entropy = hold * hold.log() + (1 - hold) * (1 - hold).log()
    returned = hold * EXCESS[:, :-1] + (1 - hold) * EXCESS[:, 1:] + tau * entropy
    hazards = said().hazard_logits
    expected = torch.zeros(B, dtype=DOUBLE)
    for losses, logits in ((EXCESS, hazards[..., AFTER]), (returned, hazards[:, :-1, BEFORE])):
        if name == "value":
            expected += continuation_value(losses, logits, price=PRICE) / 2
        else:
            temperature = TAU * PRICE
            expected += distillation(losses, logits, price=PRICE, temperature=temperature) / 2
        expected += optimum(losses) / 2
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("posterior", [name for name in POSTERIORS if name != "none"])
def test_gradients_equal_finite_differences(posterior: str) -> None:
    meta = objective(posterior=posterior)

    def value(excess: Tensor, *output: Tensor) -> Tensor:
        said = HaltingOutput(*output)
        return meta.halting(excess, said, PRICE, TAU, seeded(), distilled=False)

    leaves = [leaf.clone().requires_grad_() for leaf in (EXCESS, *said())]
    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize("name", ["distillation", "value"])
def test_hazards_hear_how_to_stop_and_holding_what_is_better(name: str) -> None:
    """The hazard takes what a stop is worth as data; holding learns from the optimum."""
    meta = objective(posterior="stick-breaking", hazard_objective=name)
    increments, hazards, holds = said()

    def value(hazards: Tensor, holds: Tensor) -> Tensor:
        return meta.halting(EXCESS, HaltingOutput(increments, hazards, holds), PRICE, TAU, seeded())

    assert torch.autograd.gradcheck(lambda v: value(v, holds), hazards.requires_grad_())
    (found,) = torch.autograd.grad(value(hazards, holds.requires_grad_()).sum(), holds)
    hold, tau = holds.sigmoid(), (TAU * PRICE).unsqueeze(1)
    entropy = hold * hold.log() + (1 - hold) * (1 - hold).log()
    returned = hold * EXCESS[:, :-1] + (1 - hold) * EXCESS[:, 1:] + tau * entropy
    (expected,) = torch.autograd.grad((optimum(returned) / 2).sum(), holds)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rule_and_head_are_paid_for_together() -> None:
    meta = objective(posterior="both", sum_weight=0.3)
    found = meta(EXCESS, said(), PRICE, TAU, seeded())
    head = meta.halting(EXCESS, said(), PRICE, TAU, seeded())
    mean = EXCESS[:, 1:].mean(1) / 0.3
    assert_close(meta.losses(EXCESS), mean, rtol=1e-13, atol=0)
    assert_close(found, head + 0.3 * mean, rtol=1e-13, atol=0)
    parts = [
        objective(posterior=name).halting(EXCESS, said(), PRICE, TAU, seeded())
        for name in ("softmax", "stick-breaking")
    ]
    assert_close(head, sum(parts) / 2, rtol=1e-13, atol=0)
