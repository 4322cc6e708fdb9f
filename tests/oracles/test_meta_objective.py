"""What the trainer minimises against sums over everything that may happen."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from haltwise.halting import halting_methods
from haltwise.halting.halter import HalterSettings
from haltwise.halting.objectives import continuation_value, distillation, halting_bound
from haltwise.halting.priors import HorizonPrior
from haltwise.models import Card, Choice, HaltingModel
from haltwise.stop_rules import DecisionTime
from haltwise.training.objective import MetaObjective

AFTER, BEFORE = DecisionTime.AFTER_GRADIENT, DecisionTime.BEFORE_GRADIENT
DOUBLE = torch.float64
B, T = 4, 6
PRICE = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=DOUBLE)
TAU = 0.7  # of the hazard, in prices


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


HAZARDS, HOLDS = 2 * randn(B, T, 2, seed=3), randn(B, T, seed=4)
EXCESS = 3 * randn(B, T + 1, seed=5).exp()
OUTPUTS: Mapping[str, Mapping[str, Tensor]] = {
    "stick-breaking": {"hazard_logits": HAZARDS, "hold_logits": HOLDS},
    "softmax": {"increments": randn(B, T, 2, seed=2)},
    "graves": {"halting_logits": HAZARDS},
}


def meta_objective(method: str, sum_weight: float = 0.3, **settings: object) -> MetaObjective:
    card = Card(Choice(method, settings), price=0.3, horizon=T, halter=HalterSettings(width=4))
    model = HaltingModel(card, 0, seeded()).double()
    if model.halter is not None:  # a new one puts out zeros
        torch.nn.init.normal_(model.halter.weights[-1], generator=seeded(7))
    return MetaObjective(model, horizon=T, price=0.3, sum_weight=sum_weight)


def hazard_objective(**settings: object) -> MetaObjective:
    constant = {"temperature": TAU, "final_temperature": TAU, "distilled": 0.0}
    return meta_objective("stick-breaking", **{**constant, **settings})


def halting(
    meta: MetaObjective,
    outputs: Mapping[str, Tensor],
    *,
    progress: float | None = 0.5,
    seed: int = 1,
) -> Tensor:
    return meta.halting(EXCESS, outputs, PRICE, progress, seeded(seed))


# --- The hazard's free energy --------------------------------------------------------------------


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def free_energies(problem: int, tau: float) -> tuple[float, float]:
    """In updates and gradients: sums over stops and over what is then returned, in prices."""
    price, losses = PRICE[problem].item(), EXCESS[problem].tolist()
    hazards = HAZARDS[problem].sigmoid().tolist()
    holds = HOLDS[problem].tolist()
    tau, updates, gradients = tau * price, 0.0, 0.0
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
    found = halting(hazard_objective(), OUTPUTS["stick-breaking"])
    for problem in range(B):
        expected = sum(free_energies(problem, TAU)) / 2
        assert found[problem].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_temperature_falls_geometrically_while_the_halter_is_trained(progress: float) -> None:
    meta = hazard_objective(temperature=0.9, final_temperature=0.1)
    found = halting(meta, OUTPUTS["stick-breaking"], progress=progress)
    tau = 0.9 ** (1 - progress) * 0.1**progress
    for problem in range(B):
        expected = sum(free_energies(problem, tau)) / 2
        assert found[problem].item() == pytest.approx(expected, rel=1e-12)


def test_holding_is_least_at_the_tempered_better_of_both_ends() -> None:
    """log-odds of holding = (f_{t+1} - f_t) / tau, whatever the hazards."""
    tau = (TAU * PRICE).unsqueeze(1)
    best = ((EXCESS[:, 1:] - EXCESS[:, :-1]) / tau).requires_grad_()
    value = halting(hazard_objective(), {"hazard_logits": HAZARDS, "hold_logits": best})
    (slope,) = torch.autograd.grad(value.sum(), best)
    assert slope.abs().max() < 1e-10
    other = halting(hazard_objective(), OUTPUTS["stick-breaking"])
    assert (other > value).all()


def optimum(losses: Tensor) -> Tensor:
    """The least free energy of stopping at one of the steps, in prices: a soft minimum."""
    steps = torch.arange(losses.shape[1], dtype=DOUBLE)
    prices = (losses / PRICE.unsqueeze(1) + steps) / TAU
    return -TAU * (-prices).exp().sum(1).log()


def test_a_free_energy_is_distilled_first() -> None:
    """For a share of the halter's own steps, and always beside the rule."""
    outputs = OUTPUTS["stick-breaking"]
    meta, distilled = hazard_objective(distilled=0.5), hazard_objective(learn_by="distillation")
    for progress, first in ((None, True), (0.0, True), (0.49, True), (0.5, False), (1.0, False)):
        found = halting(meta, outputs, progress=progress)
        assert torch.equal(found, halting(distilled, outputs, progress=progress)) == first


@pytest.mark.parametrize("name", ["distillation", "value"])
def test_the_other_objectives_of_the_hazard_learn_from_the_same_stops(name: str) -> None:
    """Counting gradients, what a stop is worth is the held or taken end, as the halter has it."""
    found = halting(hazard_objective(learn_by=name), OUTPUTS["stick-breaking"])
    hold, tau = HOLDS.sigmoid(), (TAU * PRICE).unsqueeze(1)
    entropy = hold * hold.log() + (1 - hold) * (1 - hold).log()
    returned = hold * EXCESS[:, :-1] + (1 - hold) * EXCESS[:, 1:] + tau * entropy
    expected = torch.zeros(B, dtype=DOUBLE)
    for losses, logits in ((EXCESS, HAZARDS[..., AFTER]), (returned, HAZARDS[:, :-1, BEFORE])):
        if name == "value":
            expected += continuation_value(losses, logits, price=PRICE) / 2
        else:
            temperature = TAU * PRICE
            expected += distillation(losses, logits, price=PRICE, temperature=temperature) / 2
        expected += optimum(losses) / 2
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["distillation", "value"])
def test_hazards_learn_when_to_stop_and_holding_what_is_better(name: str) -> None:
    """The hazard takes what a stop is worth as data; holding learns from the optimum."""
    meta = hazard_objective(learn_by=name)

    def value(hazards: Tensor, holds: Tensor) -> Tensor:
        return halting(meta, {"hazard_logits": hazards, "hold_logits": holds})

    hazards, holds = HAZARDS.clone().requires_grad_(), HOLDS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value(v, HOLDS), hazards)
    (found,) = torch.autograd.grad(value(HAZARDS, holds).sum(), holds)
    hold, tau = holds.sigmoid(), (TAU * PRICE).unsqueeze(1)
    entropy = hold * hold.log() + (1 - hold) * (1 - hold).log()
    returned = hold * EXCESS[:, :-1] + (1 - hold) * EXCESS[:, 1:] + tau * entropy
    (expected,) = torch.autograd.grad((optimum(returned) / 2).sum(), holds)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


# --- The thesis' bound ---------------------------------------------------------------------------


def horizon_prob(horizon: int, continuation: float) -> float:
    """p(T) = r^T (1 - r^(T+1)) (1 - nu), r = sqrt(nu); the last of 0..T has all the tail."""

    def prob(steps: int) -> float:
        ratio = continuation**0.5
        return ratio**steps * (1 - ratio ** (steps + 1)) * (1 - continuation)

    return prob(horizon) if horizon < T else 1 - sum(map(prob, range(T)))


def negative_bound(meta: MetaObjective, problem: int, tau: float, weights: list[float]) -> float:
    """Minus Eq. 8 in temperatures: sums over horizons and stops, the mean of both decisions."""
    price, losses = PRICE[problem].item(), EXCESS[problem].tolist()
    initial = meta._model.initial(PRICE)["increments"][problem, BEFORE].item()
    increments = OUTPUTS["softmax"]["increments"][problem]
    total = 0.0
    for stream in (
        increments[:, AFTER].tolist(),
        [initial, *increments[:-1, BEFORE].tolist()],
    ):
        logits = [sum(stream[:t]) for t in range(T + 1)]
        ratio = math.exp(-price / tau)
        for horizon, weight in enumerate(weights):
            norm = sum(math.exp(logit) for logit in logits[: horizon + 1])
            mass = (1 - ratio ** (horizon + 1)) / (1 - ratio)
            for t in range(horizon + 1):
                q, p = math.exp(logits[t]) / norm, ratio**t / mass
                total += weight * q * (-losses[t] - tau * math.log(q / p))
    return -total / (2 * tau)


@pytest.mark.parametrize(
    ("settings", "tau_per_price"),
    [({}, 1.0), ({"temperature_per_price": 0.4}, 0.4), ({"temperature": 0.6}, None)],
)
def test_the_bound_is_the_sum_over_horizons_and_stops(
    settings: dict[str, Any], tau_per_price: float | None
) -> None:
    """By default E[T] = 27.5 whatever the price: nu = .9."""
    meta = meta_objective("softmax", **settings)
    found = halting(meta, OUTPUTS["softmax"])
    weights = [horizon_prob(horizon, 0.9) for horizon in range(T + 1)]
    for problem in range(B):
        tau = 0.6 if tau_per_price is None else tau_per_price * PRICE[problem].item()
        expected = negative_bound(meta, problem, tau, weights)
        assert found[problem].item() == pytest.approx(expected, rel=1e-10)


def test_the_thesis_couples_the_horizon_to_the_price() -> None:
    """nu = exp(-2 c / tau): the prior of the halting step is the price's own."""
    tau = 0.6
    meta = meta_objective("softmax", temperature=tau, continuation=None)
    found = halting(meta, OUTPUTS["softmax"])
    for problem in range(B):
        continuation = math.exp(-2 * PRICE[problem].item() / tau)
        weights = [horizon_prob(horizon, continuation) for horizon in range(T + 1)]
        expected = negative_bound(meta, problem, tau, weights)
        assert found[problem].item() == pytest.approx(expected, rel=1e-10)


def test_a_sampled_horizon_is_one_of_the_prior_s() -> None:
    """Each draw is the bound at one horizon, and those come as often as the prior has them."""
    tau, continuation, num_draws = 0.6, 0.8, 2000
    settings = {"temperature": tau, "continuation": continuation, "horizons": "sampled"}
    meta = meta_objective("softmax", **settings)
    at_one = torch.tensor(
        [
            [
                negative_bound(meta, problem, tau, [float(t == horizon) for t in range(T + 1)])
                for horizon in range(T + 1)
            ]
            for problem in range(B)
        ],
        dtype=DOUBLE,
    )
    counts = torch.zeros(B, T + 1)
    generator = seeded()
    for _ in range(num_draws):
        value = meta.halting(EXCESS, OUTPUTS["softmax"], PRICE, 0.5, generator)
        error, horizon = (at_one - value.unsqueeze(1)).abs().min(1)
        assert error.max() < 1e-9
        counts[torch.arange(B), horizon] += 1
    expected = torch.tensor([horizon_prob(horizon, continuation) for horizon in range(T + 1)])
    deviation = (counts / num_draws - expected).abs()
    assert (deviation < 4.5 * (expected * (1 - expected) / num_draws).sqrt()).all()


def test_the_bound_s_own_prior_is_that_of_the_method() -> None:
    logits = randn(B, T + 1, seed=8)
    weights = torch.tensor([horizon_prob(horizon, 0.9) for horizon in range(T + 1)], dtype=DOUBLE)
    assert_close(
        halting_bound(EXCESS, logits, price=PRICE),
        halting_bound(EXCESS, logits, price=PRICE, horizon_weights=weights),
    )
    assert HorizonPrior(0.9).mean.item() == pytest.approx(27.5, rel=0.01)


# --- All methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in halting_methods() if name != "none"])
def test_gradients_equal_finite_differences(name: str) -> None:
    meta = hazard_objective() if name == "stick-breaking" else meta_objective(name)
    names = list(OUTPUTS[name])

    def value(excess: Tensor, *values: Tensor) -> Tensor:
        outputs = dict(zip(names, values, strict=True))
        return meta.halting(excess, outputs, PRICE, 0.5, seeded())

    leaves = [leaf.clone().requires_grad_() for leaf in (EXCESS, *OUTPUTS[name].values())]
    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize("name", [name for name in halting_methods() if name != "none"])
def test_rule_and_halter_are_paid_for_together(name: str) -> None:
    meta = meta_objective(name, sum_weight=0.3)
    found = meta.joint(EXCESS, OUTPUTS[name], PRICE, seeded())
    mean = EXCESS[:, 1:].mean(1) / 0.3
    assert_close(meta.losses(EXCESS), mean, rtol=1e-13, atol=0)
    alone = halting(meta, OUTPUTS[name], progress=None)
    assert_close(found, alone + 0.3 * mean, rtol=1e-13, atol=0)


def test_without_halting_the_rule_is_paid_for_by_its_mean_loss() -> None:
    meta = meta_objective("none", sum_weight=0.3)
    assert torch.equal(meta.joint(EXCESS, {}, PRICE, seeded()), meta.losses(EXCESS))


@pytest.mark.parametrize(("name", "log_odds"), [("stick-breaking", -2.0), ("graves", -2.0)])
def test_a_new_halter_goes_on_for_about_eight_steps(name: str, log_odds: float) -> None:
    """Its first hazard is 1 / (1 + e^2) at every step and price; it takes every update."""
    model = HaltingModel(Card(Choice(name), price=0.3, horizon=T), 0, seeded())
    signals = randn(B, T, 13, seed=9).float().abs()
    outputs = model(signals, signals.new_empty(B, T, 0), PRICE.float())
    assert outputs.keys() == OUTPUTS[name].keys()
    for value in outputs.values():
        assert_close(value, torch.full_like(value, log_odds))
    assert 1 / sigmoid(log_odds) == pytest.approx(8.4, abs=0.1)


def test_a_new_softmax_is_its_prior() -> None:
    """Its increments are log r = -c / tau, so that the posterior is geometric of ratio r."""
    settings = {"temperature": 0.6}
    model = HaltingModel(Card(Choice("softmax", settings), price=0.3, horizon=T), 0, seeded())
    signals = randn(B, T, 13, seed=9).float().abs()
    found = model(signals, signals.new_empty(B, T, 0), PRICE.float())["increments"]
    expected = (-PRICE.float() / 0.6).reshape(B, 1, 1).expand(B, T, 2)
    assert_close(found, expected)
