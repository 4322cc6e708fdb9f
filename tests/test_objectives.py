"""The exact objective against the double sum it stands for, its optimum and its extremes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor
from torch.testing import assert_close

from haltwise._core.errors import InputError
from haltwise.halting.priors import HorizonPrior
from haltwise.halting.objectives import (
    DEFAULT_CONTINUATION,
    continuation_value,
    cumulative_logits,
    distillation,
    free_energy,
    halting_bound,
    stick_breaking_log_prob,
    sum_of_losses,
)

DOUBLE = torch.float64


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def bounds_by_definition(
    losses: Tensor, logits: Tensor, price: float, temperature: float
) -> np.ndarray:
    """sum_t q(t|x,T) (log p(x|t) - tau log q(t|x,T) / p(t|T)) for T = 0.., one problem [T+1]."""
    bounds = []
    for horizon in range(len(losses)):
        log_q = log_softmax(logits[: horizon + 1].numpy())
        log_p = log_softmax(-price / temperature * np.arange(horizon + 1))
        worth = -losses[: horizon + 1].numpy() - temperature * (log_q - log_p)
        bounds.append((np.exp(log_q) * worth).sum())
    return np.array(bounds)


def default_weights(num_steps: int) -> np.ndarray:
    """p(T) at nu = .9, the tail on the last horizon."""
    r, horizons = math.sqrt(DEFAULT_CONTINUATION), np.arange(num_steps)
    probs = r**horizons * (1 - r ** (horizons + 1)) * (1 - DEFAULT_CONTINUATION)
    probs[-1] = 1 - probs[:-1].sum()
    return probs


positive = st.floats(-3, 3).map(lambda exponent: 10**exponent)


@given(
    num_problems=st.integers(1, 4),
    num_steps=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    price=positive,
    temperature=positive,
    size=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    weighting=st.sampled_from(["default", "shared", "one horizon each", "own"]),
)
def test_bound_equals_the_double_sum(
    num_problems: int,
    num_steps: int,
    seed: int,
    price: float,
    temperature: float,
    size: float,
    weighting: str,
) -> None:
    losses = size * randn(num_problems, num_steps, seed=seed)
    logits = size * randn(num_problems, num_steps, seed=seed + 1)
    own = torch.softmax(3 * randn(num_problems, num_steps, seed=seed + 2), 1)
    one_hot = torch.eye(num_steps, dtype=DOUBLE)[own.argmax(1)]
    weights = {"default": None, "shared": own[0], "one horizon each": one_hot, "own": own}[
        weighting
    ]
    found = halting_bound(
        losses, logits, price=price, temperature=temperature, horizon_weights=weights
    )
    summed = torch.from_numpy(default_weights(num_steps)) if weights is None else weights
    bounds = np.stack(
        [
            bounds_by_definition(*rows, price, temperature)
            for rows in zip(losses, logits, strict=True)
        ]
    )
    expected = (summed * torch.from_numpy(bounds)).sum(1)
    scale = 1 + size * 5 * (1 + temperature) + price * num_steps  # of the terms that cancel
    assert_close(found / scale, expected / scale, rtol=0, atol=1e-10 / (1 + size))


def test_prices_and_temperatures_may_differ_by_problem() -> None:
    losses, logits = randn(3, 8), randn(3, 8, seed=2)
    prices, temperatures = torch.tensor([[0.1, 1.0, 3.0], [1.0, 0.2, 5.0]], dtype=DOUBLE)
    together = halting_bound(losses, logits, price=prices, temperature=temperatures)
    for i in range(3):
        alone = halting_bound(
            losses[i : i + 1],
            logits[i : i + 1],
            price=prices[i].item(),
            temperature=temperatures[i].item(),
        )
        assert_close(together[i : i + 1], alone, rtol=1e-14, atol=0)


def test_gradients_equal_finite_differences() -> None:
    price, temperature = (torch.tensor([0.3, 2.0], dtype=DOUBLE) for _ in range(2))
    arguments = (randn(2, 6), 4 * randn(2, 6, seed=2), price, 2 * temperature, randn(2, 6, seed=3))

    def bound(
        losses: Tensor, logits: Tensor, price: Tensor, temperature: Tensor, free: Tensor
    ) -> Tensor:
        return halting_bound(
            losses,
            logits,
            price=price,
            temperature=temperature,
            horizon_weights=free.softmax(1),
        )

    assert torch.autograd.gradcheck(bound, [value.requires_grad_() for value in arguments])


@pytest.mark.parametrize("shape", ["random", "rising", "falling", "spike"])
@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_float32_stays_finite_and_right_over_a_thousand_steps(size: float, shape: str) -> None:
    steps = torch.linspace(-1, 1, 1001, dtype=DOUBLE)
    shapes = {
        "random": randn(2, 1001).clamp(-1, 1),
        "rising": steps.expand(2, -1),
        "falling": -steps.expand(2, -1),
        "spike": (steps.abs() < 1e-9).double().expand(2, -1),
    }
    inputs = randn(2, 1001, seed=2).abs().float(), (size * shapes[shape]).float()
    results = []
    for dtype in (DOUBLE, torch.float32):
        leaves = [value.to(dtype).clone().requires_grad_() for value in inputs]
        bound = halting_bound(*leaves, price=0.05, temperature=0.2)
        results.append((bound, *torch.autograd.grad(bound.sum(), leaves)))
    for expected, found in zip(*results, strict=True):  # the natural unit is tau = .2
        assert found.isfinite().all()
        assert (found - expected).abs().max() <= 1e-2 * (0.2 + expected.abs().max())


def test_sampled_horizons_agree_on_average() -> None:
    losses, logits, price = randn(12), randn(12, seed=2).cumsum(0), 0.3
    bounds = torch.from_numpy(bounds_by_definition(losses, logits, price, 1.0))
    prior = HorizonPrior(torch.tensor(DEFAULT_CONTINUATION, dtype=DOUBLE))
    sampled = bounds[prior.sample((40000,), seeded()).clamp_max(11).long()]
    exact = halting_bound(losses[None], logits[None], price=price)
    assert (sampled.mean() - exact).abs() < 4 * sampled.std() / 200


# --- The optimum ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("price", "temperature"), [(0.3, 1.0), (0.05, 0.1), (2.0, 0.5)])
def test_the_closed_form_increments_maximise_the_bound(price: float, temperature: float) -> None:
    losses, weights = 2 * randn(3, 15), torch.softmax(randn(15, seed=2), 0)
    increments = (losses[:, :-1] - losses[:, 1:] - price) / temperature
    settings: Any = {"price": price, "temperature": temperature, "horizon_weights": weights}
    logits = cumulative_logits(increments).requires_grad_()
    best = halting_bound(losses, logits, **settings)

    # There the bound is the free energy tau log sum_t p(t|T) exp(-f_t / tau).
    log_ratio = -price / temperature
    free = [
        temperature
        * torch.logsumexp(
            -losses[:, : horizon + 1] / temperature
            + torch.log_softmax(log_ratio * torch.arange(horizon + 1, dtype=DOUBLE), 0),
            1,
        )
        for horizon in range(15)
    ]
    assert_close(best, torch.stack(free, 1) @ weights, rtol=1e-12, atol=1e-13)

    (gradient,) = torch.autograd.grad(best.sum(), logits)
    assert gradient.abs().max() < 1e-13
    for seed, exponent in enumerate(range(-3, 3)):
        for size in (10.0**exponent, -(10.0**exponent)):
            moved = logits.detach() + size * randn(3, 15, seed=seed)
            assert (halting_bound(losses, moved, **settings) <= best + 1e-13).all()
            assert exponent < -1 or (halting_bound(losses, moved, **settings) < best).all()


def test_logits_of_the_prior_cost_no_divergence() -> None:
    losses, price, temperature = randn(2, 9), 0.4, 0.7
    steps = torch.arange(9, dtype=DOUBLE)
    logits = (-price / temperature * steps).expand(2, -1)
    found = halting_bound(losses, logits, price=price, temperature=temperature)
    mean = [
        -losses[:, : horizon + 1] @ torch.softmax(logits[0, : horizon + 1], 0)
        for horizon in range(9)
    ]
    expected = torch.stack(mean, 1) @ torch.from_numpy(default_weights(9))
    assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_only_differences_of_logits_matter() -> None:
    losses, logits = randn(2, 9), randn(2, 9, seed=2)
    one, moved = (halting_bound(losses, logits + shift, price=0.4) for shift in (0, 12.5))
    assert_close(one, moved, rtol=1e-12, atol=1e-12)


# --- Problems that diverged, and bad input -------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_a_nonfinite_problem_leaves_the_others_bit_identical(where: int, poison: float) -> None:
    """It is data: its own bound is NaN or infinite and the caller leaves the problem out."""
    results = []
    for value in (0.5, poison):
        leaves = [randn(3, 7), randn(3, 7, seed=2)]
        leaves[where][1, 3] = value
        leaves = [leaf.requires_grad_() for leaf in leaves]
        bound = halting_bound(*leaves, price=0.2)
        results.append([bound, *torch.autograd.grad(bound[[0, 2]].sum(), leaves)])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean[[0, 2]], poisoned[[0, 2]])
    assert not results[1][0][1].isfinite()


LOSSES = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("losses", "logits", "settings", "message"),
    [
        (LOSSES, torch.zeros(3, 4), {}, r"\(3, 5\) and \(3, 4\)"),
        (LOSSES[0], LOSSES[0], {}, r"\(5,\)"),
        (LOSSES[:, :0], LOSSES[:, :0], {}, r"\(3, 0\)"),
        (LOSSES, LOSSES, {"price": 0.0}, "price must be above 0, got 0"),
        (
            LOSSES,
            LOSSES,
            {"price": torch.tensor([1.0, -2.0, 1.0])},
            "price must be above 0, got -2",
        ),
        (LOSSES, LOSSES, {"price": math.nan}, "price"),
        (LOSSES, LOSSES, {"price": torch.ones(2)}, "price"),
        (LOSSES[:1], LOSSES[:1], {"price": torch.ones(2)}, "price"),
        (LOSSES, LOSSES, {"temperature": -1.0}, "temperature must be above 0, got -1"),
        (LOSSES, LOSSES, {"temperature": torch.zeros(3)}, "temperature must be above 0, got 0"),
        (LOSSES, LOSSES, {"temperature": torch.ones(2)}, "temperature"),
        (LOSSES, LOSSES, {"horizon_weights": torch.ones(4) / 4}, "horizon_weights"),
        (LOSSES, LOSSES, {"horizon_weights": torch.ones(2, 5) / 5}, "horizon_weights"),
        (LOSSES, LOSSES, {"horizon_weights": torch.tensor(1.0)}, "horizon_weights"),
        (LOSSES, LOSSES, {"horizon_weights": torch.ones(5)}, "horizon_weights"),
        (LOSSES, LOSSES, {"horizon_weights": torch.tensor([2.0, -1, 0, 0, 0])}, "horizon_weights"),
    ],
)
def test_bad_input_is_refused(
    losses: Tensor, logits: Tensor, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        halting_bound(losses, logits, **{"price": 1.0, **settings})


# --- The small ones ------------------------------------------------------------------------------


def test_sum_of_losses_leaves_out_the_start() -> None:
    assert sum_of_losses(torch.tensor([[7.0, 1, 2], [9, 3, 4]])).tolist() == [3, 7]


def test_cumulative_logits_start_at_zero() -> None:
    increments = torch.tensor([[1.0, -2, 4], [0, 5, 1]])
    assert cumulative_logits(increments).tolist() == [[0, 1, -1, 3], [0, 0, 5, 6]]


# --- The stick-breaking posterior ----------------------------------------------------------------


def test_stick_breaking_is_the_product_of_hazards() -> None:
    logits = 3 * randn(4, 6)
    found = stick_breaking_log_prob(logits).exp()
    for row, hazards in zip(found, logits.sigmoid().tolist(), strict=True):
        left = 1.0
        for step, hazard in enumerate([*hazards, 1.0]):
            assert abs(row[step].item() - left * hazard) < 1e-15
            left *= 1 - hazard
    assert_close(found.sum(1), torch.ones(4, dtype=DOUBLE), rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_stick_breaking_free_energy_stays_finite_in_float32(size: float) -> None:
    logits = (size * randn(3, 1000).clamp(-1, 1)).float().requires_grad_()
    energy = free_energy(
        randn(3, 1001, seed=2).float(),
        stick_breaking_log_prob(logits),
        price=torch.ones(3),
        temperature=torch.ones(3),
    )
    energy.sum().backward()
    assert energy.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_free_energy_is_the_sum_and_least_at_the_closed_form() -> None:
    losses, price, temperature = (value.exp() for value in (randn(3, 9), randn(3), randn(3)))
    settings = {"price": price, "temperature": temperature}
    steps = torch.arange(9, dtype=DOUBLE)
    energies = losses + price[:, None] * steps
    logits = (-energies / temperature[:, None]).requires_grad_()
    best = free_energy(losses, logits.log_softmax(1), **settings)
    assert_close(best, -temperature * torch.logsumexp(logits, 1), rtol=1e-12, atol=1e-13)
    (gradient,) = torch.autograd.grad(best.sum(), logits)
    assert gradient.abs().max() < 1e-14

    other = randn(3, 9, seed=5).log_softmax(1)
    expected = (other.exp() * (energies + temperature[:, None] * other)).sum(1)
    assert_close(free_energy(losses, other, **settings), expected, rtol=1e-13, atol=0)
    assert (expected > best).all()


def test_free_energy_is_minus_the_bound_at_one_horizon() -> None:
    losses, logits, price, temperature = randn(2, 8), randn(2, 8, seed=2), 0.3, 0.7
    last = torch.eye(8, dtype=DOUBLE)[-1]
    bound = halting_bound(
        losses, logits, price=price, temperature=temperature, horizon_weights=last
    )
    both = {
        name: torch.full((2,), value, dtype=DOUBLE)
        for name, value in (("price", price), ("temperature", temperature))
    }
    energy = free_energy(losses, logits.log_softmax(1), **both)
    mass = torch.logsumexp(-price / temperature * torch.arange(8, dtype=DOUBLE), 0)
    assert_close(energy + bound, -temperature * mass.expand(2), rtol=1e-12, atol=1e-13)


# --- What else the hazard may be learned by ------------------------------------------------------

PRICES, TEMPERATURES = torch.tensor([[0.1, 1.0, 3.0, 0.5], [1.0, 0.2, 5.0, 0.05]], dtype=DOUBLE)
SETTINGS = {"price": PRICES, "temperature": TEMPERATURES}


def optimum(losses: Tensor, problem: int) -> list[float]:
    """Q of one problem by definition."""
    price, temperature = PRICES[problem].item(), TEMPERATURES[problem].item()
    costs = [loss + price * step for step, loss in enumerate(losses[problem].tolist())]
    weights = [math.exp(-(cost - min(costs)) / temperature) for cost in costs]
    return [weight / math.fsum(weights) for weight in weights]


def test_distillation_is_the_cross_entropy_to_the_free_energys_optimum() -> None:
    losses, logits = 2 * randn(4, 7), 2 * randn(4, 6, seed=2)
    found = distillation(losses, logits, **SETTINGS)
    for problem in range(4):
        expected, left = 0.0, 1.0
        for q, hazard in zip(
            optimum(losses, problem), [*logits[problem].sigmoid().tolist(), 1.0], strict=True
        ):
            expected -= q * math.log(left * hazard)
            left *= 1 - hazard
        assert found[problem].item() == pytest.approx(expected, rel=1e-12)


def test_distillation_is_least_where_the_hazards_make_up_the_optimum() -> None:
    """It is convex in the logits, so where its slope vanishes it is least, among all hazards."""
    losses, other = randn(4, 7), randn(4, 6, seed=2)
    best = torch.tensor([optimum(losses, problem) for problem in range(4)], dtype=DOUBLE)
    later = best.flip(1).cumsum(1).flip(1)[:, 1:]
    logits = (best[:, :-1] / later).log().requires_grad_()
    assert_close(stick_breaking_log_prob(logits).exp(), best, rtol=1e-10, atol=1e-12)
    reached = distillation(losses, logits, **SETTINGS)
    assert_close(reached, -(best * best.log()).sum(1), rtol=1e-12, atol=1e-12)  # Q's entropy
    (slope,) = torch.autograd.grad(reached.sum(), logits)
    assert slope.abs().max() < 1e-12
    for size in (1e-3, 1.0, 30.0):
        assert (distillation(losses, logits + size * other, **SETTINGS) > reached).all()


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_continuation_values_are_collected_backwards_step_by_step(size: float) -> None:
    losses, logits = size * randn(4, 9), 2 * randn(4, 8, seed=2)
    found = continuation_value(losses, logits, price=PRICES)
    for problem in range(4):
        price, loss = PRICES[problem].item(), losses[problem].tolist()
        forecast, errors = logits[problem].tolist(), []
        for step in range(8):
            # Where the policy stops if it goes on now: the first stop later, or the horizon.
            end = next((t for t in range(step + 1, 8) if forecast[t] >= 0), 8)
            value = (loss[end] - loss[step]) / price + end - step
            miss = abs(forecast[step] - min(max(value, -10), 10))
            errors.append(miss**2 / 2 if miss <= 1 else miss - 0.5)
        assert found[problem].item() == pytest.approx(sum(errors) / 8, rel=1e-12)


def test_a_perfect_forecast_of_continuation_has_no_error_and_stops_as_hindsight_does() -> None:
    losses = torch.tensor([[3.0, 1.0, 1.8, 0.2, 0.9]], dtype=DOUBLE)
    price = torch.ones(1, dtype=DOUBLE)  # J: 3, 2, 3.8, 3.2, 4.9; 2 at step 1 is the least
    logits = torch.tensor([[-1.0, 1.2, -0.6, 1.7]], dtype=DOUBLE)
    assert continuation_value(losses, logits, price=price).item() == pytest.approx(0)


def test_objectives_of_the_hazard_take_losses_as_data() -> None:
    losses, logits = randn(4, 7).requires_grad_(), randn(4, 6, seed=2).requires_grad_()
    total = distillation(losses, logits, **SETTINGS).sum()
    total = total + continuation_value(losses, logits, price=PRICES).sum()
    total.backward()
    assert losses.grad is None
    assert logits.grad is not None


def test_gradients_of_the_hazards_objectives_equal_finite_differences() -> None:
    losses, logits = randn(4, 7), (2 * randn(4, 6, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: distillation(losses, v, **SETTINGS), logits)
    assert torch.autograd.gradcheck(lambda v: continuation_value(losses, v, price=PRICES), logits)
