"""What halting methods minimise against sums over everything that may happen."""

import math
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from halting_examples import EXCESS, PRICE, B, T, examples, objective, outputs
from posterior_cases import graves_loop, sigmoid
from stop_rule_cases import AFTER, BEFORE
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting import (
    Graves,
    HaltingExamples,
    HaltingMethod,
    HorizonPrior,
    Softmax,
    StickBreaking,
)
from haltwise.halting.objectives import (
    continuation_value,
    cumulative_logits,
    distillation,
    halting_bound,
)
from haltwise.stop_rules import HazardThreshold

TAU = 0.7  # of the hazard, in prices


def at_tau(learn_by: Any = "free-energy") -> StickBreaking:
    """Learned at one temperature throughout."""
    return StickBreaking(learn_by, temperature=TAU, final_temperature=TAU)


# --- Stick-breaking ------------------------------------------------------------------------------


def free_energies(problem: int) -> tuple[float, float]:
    """In both units of cost: sums over stops and over what is then returned, in prices."""
    price, losses = PRICE[problem].item(), EXCESS[problem].tolist()
    hazards = outputs()["hazard_logits"][problem].sigmoid().tolist()
    holds = outputs()["hold_logits"][problem].tolist()
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
    found = objective(at_tau())
    for problem in range(B):
        expected = sum(free_energies(problem)) / 2
        assert found[problem].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("progress", [None, 0.0, 0.25, 1.0])
def test_the_temperature_falls_while_the_halter_is_trained(progress: float | None) -> None:
    """From the first to the last by a constant factor; it is the first beside the update rule."""
    cooled = 0.8 * (0.2 / 0.8) ** (progress or 0.0)
    falling = StickBreaking(temperature=0.8, final_temperature=0.2, distilled=0.1)
    constant = StickBreaking(temperature=cooled, final_temperature=cooled, distilled=0.1)
    found, expected = (objective(method, progress=progress) for method in (falling, constant))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_holding_is_least_at_the_tempered_better_of_both_ends() -> None:
    """log-odds of holding = (f_{t+1} - f_t) / tau, whatever the hazards."""
    tau = (TAU * PRICE).unsqueeze(1)
    best = ((EXCESS[:, 1:] - EXCESS[:, :-1]) / tau).requires_grad_()
    value = objective(at_tau(), hold_logits=best)
    (slope,) = torch.autograd.grad(value.sum(), best)
    assert slope.abs().max() < 1e-10
    assert (objective(at_tau()) > value).all()


def optimum(losses: Tensor) -> Tensor:
    """The least free energy of stopping at one of the steps, in prices: a soft minimum."""
    steps = torch.arange(losses.shape[1], dtype=DOUBLE)
    prices = (losses / PRICE.unsqueeze(1) + steps) / TAU
    return -TAU * (-prices).exp().sum(1).log()


@pytest.mark.parametrize(
    ("progress", "distilled"), [(None, True), (0.0, True), (0.29, True), (0.3, False), (1.0, False)]
)
def test_a_free_energy_is_distilled_at_first(progress: float | None, distilled: bool) -> None:
    found = objective(at_tau(), progress=progress)
    first = objective(at_tau("distillation"), progress=progress)
    assert torch.equal(found, first) == distilled


def returned() -> Tensor:
    """What a stop that has paid for gamma_t returns: the held or the taken end, as mixed."""
    hold, tau = outputs()["hold_logits"].sigmoid(), (TAU * PRICE).unsqueeze(1)
    entropy = hold * hold.log() + (1 - hold) * (1 - hold).log()
    return hold * EXCESS[:, :-1] + (1 - hold) * EXCESS[:, 1:] + tau * entropy


@pytest.mark.parametrize("name", ["distillation", "value"])
def test_the_other_objectives_of_the_hazard_learn_from_the_same_stops(name: str) -> None:
    found = objective(at_tau(name))
    hazards = outputs()["hazard_logits"]
    expected = torch.zeros(B, dtype=DOUBLE)
    for losses, logits in ((EXCESS, hazards[..., AFTER]), (returned(), hazards[:, :-1, BEFORE])):
        if name == "value":
            expected += continuation_value(losses, logits, price=PRICE) / 2
        else:
            temperature = TAU * PRICE
            expected += distillation(losses, logits, price=PRICE, temperature=temperature) / 2
        expected += optimum(losses) / 2
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["distillation", "value"])
def test_hazards_learn_how_to_stop_and_holding_what_is_better(name: str) -> None:
    """The hazard takes what a stop is worth as data; holding learns from the optimum."""
    method = at_tau(name)
    hazards, holds = outputs()["hazard_logits"], outputs()["hold_logits"]
    assert torch.autograd.gradcheck(
        lambda value: objective(method, hazard_logits=value), hazards.requires_grad_()
    )
    value = objective(method, hold_logits=holds.requires_grad_())
    (found,) = torch.autograd.grad(value.sum(), holds)
    hold, tau = holds.sigmoid(), (TAU * PRICE).unsqueeze(1)
    entropy = hold * hold.log() + (1 - hold) * (1 - hold).log()
    ends = hold * EXCESS[:, :-1] + (1 - hold) * EXCESS[:, 1:] + tau * entropy
    (expected,) = torch.autograd.grad((optimum(ends) / 2).sum(), holds)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


# --- Softmax -------------------------------------------------------------------------------------


def bound_of_both_times(method: Softmax, weights: Tensor, temperature: Tensor) -> Tensor:
    """The mean of minus both bounds, in temperatures."""
    increments = outputs()["increments"]
    first = examples().initial["increments"][:, BEFORE].unsqueeze(1)
    before = torch.cat((first, increments[:, :-1, BEFORE]), 1)
    bounds = [
        halting_bound(
            EXCESS,
            cumulative_logits(stream),
            price=PRICE,
            temperature=temperature,
            horizon_weights=weights,
        )
        for stream in (increments[..., AFTER], before)
    ]
    return -sum(bounds) / (2 * temperature)


@pytest.mark.parametrize(
    ("method", "temperature"),
    [
        (Softmax(), PRICE),
        (Softmax(temperature_per_price=3.0), 3 * PRICE),
        (Softmax(temperature=0.7, temperature_per_price=3.0), torch.full_like(PRICE, 0.7)),
    ],
)
@pytest.mark.parametrize("coupled", [False, True])
def test_the_softmax_objective_is_the_bound_at_both_times_of_decision(
    method: Softmax, temperature: Tensor, coupled: bool
) -> None:
    """Before the gradient the step to come is judged, step 0 from the price alone."""
    nu = torch.full_like(PRICE, 0.9)
    if coupled:  # as the thesis couples the prior to the price
        nu = torch.exp(-2 * PRICE / temperature)
    weights = HorizonPrior(nu).weights(T)
    changed = Softmax(method.temperature, method.temperature_per_price, None if coupled else 0.9)
    found = objective(changed)
    assert_close(found, bound_of_both_times(method, weights, temperature), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_price", [1.0, 3.0])
def test_exits_minimise_the_bound_of_decisions_with_the_outcome_in_hand(per_price: float) -> None:
    """So where a method decides in no other way, it is the objective."""
    method = Softmax(temperature_per_price=per_price, before_gradient=False)
    given = examples(increments=outputs()["increments"][..., AFTER])._replace(initial={})
    assert_close(method.exit_objective(given), method.objective(given), rtol=1e-12, atol=0)


def bound_by_definition(losses: list[float], increments: list[float], price: float) -> float:
    """Eq. 8 at one horizon and tau = 1, over all steps of it: E_q log p(x|t) - KL(q || p)."""
    logits = [math.fsum(increments[:t]) for t in range(len(losses))]
    total = math.fsum(map(math.exp, logits))
    ratios = [math.exp(-price * t) for t in range(len(losses))]
    bound = 0.0
    for loss, logit, ratio in zip(losses, logits, ratios, strict=True):
        q, prior = math.exp(logit) / total, ratio / math.fsum(ratios)
        bound += q * (-loss - math.log(q / prior))
    return bound


def repeated(one: HaltingExamples, num: int) -> HaltingExamples:
    """The same examples many times over, each with a horizon of its own."""

    def tiled(value: Tensor) -> Tensor:
        return value.repeat(num, *[1] * (value.ndim - 1))

    return one._replace(
        excess=tiled(one.excess),
        outputs={name: tiled(value) for name, value in one.outputs.items()},
        initial={name: tiled(value) for name, value in one.initial.items()},
        price=tiled(one.price),
    )


def test_a_sampled_horizon_of_the_thesis_is_the_exact_expectation_on_average() -> None:
    """One bound at one horizon a problem, drawn from p(T) with nu = exp(-2 c) (Eq. 13 and 14)."""
    increments = outputs()["increments"][..., 0]
    exact, sampled = (
        Softmax(1.0, continuation=None, horizons=horizons, before_gradient=False)
        for horizons in ("exact", "sampled")
    )
    num = 4000
    drawn = repeated(examples(increments=increments)._replace(initial={}), num)
    draws = sampled.objective(drawn).view(num, B)
    for i, price in enumerate(PRICE.tolist()):
        r, nu = math.exp(-price), math.exp(-2 * price)
        probs = [r**t * (1 - r ** (t + 1)) * (1 - nu) for t in range(T)]
        probs.append(1 - math.fsum(probs))  # what is beyond the unroll counts as its end
        bounds = [
            bound_by_definition(EXCESS[i, : t + 1].tolist(), increments[i, :t].tolist(), price)
            for t in range(T + 1)
        ]
        expected = -math.fsum(p * bound for p, bound in zip(probs, bounds, strict=True))
        assert objective(exact, increments=increments)[i].item() == pytest.approx(expected)
        values = draws[:, i].unsqueeze(1) + torch.tensor(bounds, dtype=DOUBLE)
        assert (values.abs().min(1).values < 1e-9).all()  # each draw is one horizon's bound
        assert draws[:, i].std() > 0
        error = draws[:, i].std().item() / math.sqrt(num)
        assert abs(draws[:, i].mean().item() - expected) < 4 * error


def test_sampled_horizons_are_the_exact_ones_on_average() -> None:
    exact, sampled = Softmax(), Softmax(horizons="sampled")
    draws = sampled.objective(repeated(examples(), 4000)).view(4000, B)
    error = draws.std(0) / math.sqrt(4000)
    assert ((draws.mean(0) - objective(exact)).abs() < 4 * error).all()
    assert (error > 0).all()


def test_a_new_halter_reproduces_the_prior() -> None:
    """Raw outputs of zero are increments of log r = -c / tau."""
    raw = torch.zeros(B, T, 2, dtype=DOUBLE)
    found = Softmax(temperature_per_price=0.5).outputs(raw, PRICE)["increments"]
    assert torch.equal(found, torch.full((B, T, 2), -2.0, dtype=DOUBLE))
    posterior = Softmax(temperature=0.7, continuation=None).posterior(
        Softmax(temperature=0.7).outputs(raw, PRICE), AFTER
    )
    prior = (-PRICE.unsqueeze(1) / 0.7 * torch.arange(T + 1)).log_softmax(1)  # of ratio r
    assert_close(posterior.log_prob(), prior, rtol=0, atol=1e-12)


def test_the_forecast_gain_of_the_optimum_is_the_gain() -> None:
    """At delta_t = (f_t - f_{t+1} - c) / tau the forecast is f_t - f_{t+1}."""
    method = Softmax(temperature_per_price=2.0)
    tau, cost = (2 * PRICE).unsqueeze(1), PRICE.unsqueeze(1)
    gain = EXCESS[:, :-1] - EXCESS[:, 1:]
    best = ((gain - cost) / tau).unsqueeze(-1).expand(-1, -1, 2)
    for t in range(T):
        for time in (AFTER, BEFORE):
            found = method.forecast_gain({"increments": best[:, t]}, method.rule(time), PRICE)
            assert found is not None
            assert_close(found, gain[:, t], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threshold", [-0.8, 0.0, 1.5])
@pytest.mark.parametrize(("learn_by", "tau"), [("free-energy", TAU), ("value", 1.0)])
def test_the_forecast_gain_is_the_price_where_the_hazard_meets_its_threshold(
    learn_by: str, tau: float, threshold: float
) -> None:
    """Off it, log-odds are (cost of going on - cost of stopping) / tau, moved by the threshold."""
    method, cost = at_tau(learn_by), PRICE.unsqueeze(1)
    gain = EXCESS[:, :-1] - EXCESS[:, 1:]
    best = ((cost - gain) / (tau * cost) + threshold).unsqueeze(-1).expand(-1, -1, 2)
    for t in range(T):
        for time in (AFTER, BEFORE):
            rule = HazardThreshold(threshold, time)
            found = method.forecast_gain({"hazard_logits": best[:, t]}, rule, PRICE)
            assert found is not None
            assert_close(found, gain[:, t], rtol=1e-12, atol=1e-12)
            at_level = torch.full((B, 2), threshold, dtype=DOUBLE)
            found = method.forecast_gain({"hazard_logits": at_level}, rule, PRICE)
            assert_close(found, PRICE, rtol=1e-12, atol=0)


# --- Graves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_graves_objective_is_expected_loss_and_ponder_cost_at_both_times(epsilon: float) -> None:
    found = objective(Graves(epsilon))
    logits = outputs()["halting_logits"]
    for i in range(B):
        price, total = PRICE[i].item(), 0.0
        for losses, own in (
            (EXCESS[i].tolist(), logits[i, :, AFTER].tolist()),
            (EXCESS[i, 1:].tolist(), logits[i, :-1, BEFORE].tolist()),
        ):
            p = graves_loop([*own, 0.0], epsilon)
            last = max(step for step, mass in enumerate(p) if mass > 0)
            expected = sum(mass * loss for mass, loss in zip(p, losses, strict=True))
            total += expected + price * (last + p[last])
        assert found[i].item() == pytest.approx(total / 2 / price, rel=1e-12)


# --- All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [at_tau(), Softmax(), Softmax(horizons="sampled"), Graves()],
    ids=repr,
)
def test_gradients_equal_finite_differences_in_losses_and_outputs(method: HaltingMethod) -> None:
    names = list(method.output_sizes)

    def value(excess: Tensor, *found: Tensor) -> Tensor:
        return objective(method, excess=excess, **dict(zip(names, found, strict=True)))

    leaves = [EXCESS, *(outputs()[name] for name in names)]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learn_by": "guessing"}, "learn_by must be one of free-energy, distillation, value"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"final_temperature": -1.0}, "final_temperature must be above 0, got -1"),
        ({"distilled": 1.5}, "distilled must lie between 0 and 1, got 1.5"),
    ],
)
def test_impossible_settings_of_stick_breaking_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        StickBreaking(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"temperature_per_price": 0.0}, "temperature_per_price must be above 0"),
        ({"continuation": 1.0}, "continuation must lie strictly between 0 and 1, got 1"),
        ({"horizons": "all"}, "horizons must be one of exact, sampled, got 'all'"),
    ],
)
def test_impossible_settings_of_softmax_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Softmax(**settings)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_an_impossible_epsilon_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match="epsilon must lie in"):
        Graves(epsilon)


def test_random_numbers_come_from_the_generator_alone() -> None:
    method = Softmax(horizons="sampled")
    torch.manual_seed(1)
    first = objective(method)
    torch.manual_seed(2)
    assert torch.equal(objective(method), first)
    other = method.objective(examples()._replace(generator=seeded(2)))
    assert not torch.equal(other, first)


def test_a_new_hazard_goes_on_for_about_eight_steps() -> None:
    """Its mean waiting time is (1 - rho) / rho = e^2 = 7.4 steps, at both times of decision."""
    method = StickBreaking()
    found = method.outputs(torch.zeros(2, method.num_outputs), torch.ones(2))
    hazard = found["hazard_logits"].sigmoid()
    assert_close((1 - hazard) / hazard, torch.full((2, 2), math.exp(2)))
