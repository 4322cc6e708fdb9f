"""The free energy, and what else a hazard is learned by, against sums over all that may happen."""

import math

import pytest
import torch
from draws import DOUBLE, randn
from posterior_cases import Make, Twin, every_posterior
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting import StickBreakingPosterior
from haltwise.halting.objectives import (
    continuation_value,
    distillation,
    free_energy,
    halting_bound,
    optimal_free_energy,
    stick_breaking_log_prob,
)

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


# --- Of any posterior ----------------------------------------------------------------------------


@every_posterior
def test_the_free_energy_of_any_posterior_is_its_sum(make: Make, twin: Twin) -> None:
    """What stands where the probability is zero is not read."""
    values, losses = 3 * randn(4, 6), randn(4, 6, seed=2)
    log_prob = make(values).log_prob()
    leaves = [
        losses.masked_fill(log_prob == -torch.inf, torch.nan).requires_grad_(),
        values.requires_grad_(),
        TEMPERATURES.clone().requires_grad_(),
    ]
    found = free_energy(leaves[0], make(values).log_prob(), price=PRICES, temperature=leaves[2])
    for i in range(4):
        price, tau = PRICES[i].item(), TEMPERATURES[i].item()
        expected = math.fsum(
            q * (loss + price * t + tau * math.log(q))
            for t, (q, loss) in enumerate(
                zip(twin(values[i].tolist()), losses[i].tolist(), strict=True)
            )
            if q > 0
        )
        assert found[i].item() == pytest.approx(expected, rel=1e-9)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), leaves))
    with pytest.raises(InputError, match=r"\(4, 5\) and \(4, 6\)"):
        free_energy(losses[:, :-1], log_prob, **SETTINGS)


def test_free_energy_is_ponder_nets_regularised_loss_up_to_a_constant() -> None:
    """E_q[f] + beta KL(q || geometric), truncated and renormalised at T."""
    losses, beta, continuation = randn(4, 7), 0.3, 0.8
    posterior = StickBreakingPosterior(randn(4, 6, seed=2))
    price = -beta * 0.5 * math.log(continuation)
    energy = free_energy(
        losses,
        posterior.log_prob(),
        price=torch.full((4,), price, dtype=DOUBLE),
        temperature=torch.full((4,), beta, dtype=DOUBLE),
    )
    log_q = posterior.log_prob()
    prior = (0.5 * math.log(continuation) * torch.arange(7, dtype=DOUBLE)).log_softmax(0)
    expected = (log_q.exp() * (losses + beta * (log_q - prior))).sum(1)
    assert_close(energy, expected + beta * prior[0], rtol=1e-12, atol=1e-12)


def test_the_optimal_free_energy_is_that_of_the_optimum_and_weighs_losses_by_it() -> None:
    losses = randn(4, 7).requires_grad_()
    best = optimal_free_energy(losses, **SETTINGS)
    q = torch.tensor([optimum(losses.detach(), i) for i in range(4)], dtype=DOUBLE)
    assert_close(best, free_energy(losses, q.log(), **SETTINGS), rtol=1e-10, atol=1e-12)
    (weights,) = torch.autograd.grad(best.sum(), losses)
    assert_close(weights, q, rtol=1e-10, atol=1e-12)
