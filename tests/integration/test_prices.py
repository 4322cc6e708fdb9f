"""Prices: closed forms, and the budget as `solve` spends it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import haltwise
from haltwise import InputError, price_for_budget, price_for_time, price_for_tolerance
from haltwise.tasks import family

SOME = st.floats(1e-6, 1e6)


@given(SOME, SOME, SOME, SOME)
def test_the_price_of_time_depends_on_no_currency_and_scales_with_the_loss(
    seconds: float, second: float, value: float, other: float
) -> None:
    price = price_for_time(seconds, second, value)
    assert price * value == pytest.approx(seconds * second)
    assert price_for_time(seconds, second * other, value * other) == pytest.approx(price)
    assert price_for_time(seconds, second, value / other) == pytest.approx(price * other)


@given(SOME, st.integers(1, 1000))
def test_a_tolerance_is_spent_over_its_gradients(tolerance: float, number: int) -> None:
    assert price_for_tolerance(tolerance, number) * number == pytest.approx(tolerance)


@pytest.mark.parametrize("name", ["regression-2d", "regression-10d"])
def test_a_budget_is_kept_and_hardly_undershot(name: str) -> None:
    sample, card = (
        family(name).sample(200, torch.Generator().manual_seed(4)),
        haltwise.load(name).card,
    )
    own = haltwise.solve(sample, name).num_gradients.double().mean().item()
    for budget in (own, own + 0.3):
        price = price_for_budget(sample, budget, name)
        assert card.price / card.price_range <= price <= card.price * card.price_range
        used, before = (
            haltwise.solve(sample, name, price=at).num_gradients.double().mean().item()
            for at in (price, price / 1.02)
        )
        assert used <= budget < before + 1e-9


def test_a_budget_out_of_reach_says_what_can_be_reached() -> None:
    sample = family("regression-2d").sample(50, torch.Generator().manual_seed(4))
    with pytest.raises(InputError, match=r"takes from \d.* gradients, .* so 900 cannot be reached"):
        price_for_budget(sample, 900, "regression-2d")


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "one", None])
def test_numbers_that_are_no_prices_are_refused(bad: Any) -> None:
    sample = family("regression-2d").sample(5, torch.Generator().manual_seed(4))
    calls: list[Callable[[], float]] = [
        lambda: price_for_time(bad, 1, 1),
        lambda: price_for_time(1, bad, 1),
        lambda: price_for_time(1, 1, bad),
        lambda: price_for_tolerance(bad),
        lambda: price_for_tolerance(1, bad),
        lambda: price_for_budget(sample, bad, "regression-2d"),
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()
