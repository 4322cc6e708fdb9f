"""The thesis' bound against the double sum it stands for, its optimum and its extremes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from draws import DOUBLE, randn, seeded
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting.objectives import cumulative_logits, halting_bound, sum_of_losses
from haltwise.halting.priors import HorizonPrior


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
    r, horizons = math.sqrt(0.9), np.arange(num_steps)
    probs = r**horizons * (1 - r ** (horizons + 1)) * (1 - 0.9)
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
    prior = HorizonPrior(torch.full((40000,), 0.9, dtype=DOUBLE))
    sampled = bounds[prior.sample(seeded()).clamp_max(11).long()]
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
