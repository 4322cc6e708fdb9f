"""What every posterior must satisfy: slow loops, finite differences, extremes, impossible input."""

import inspect
import math

import pytest
import torch
from draws import DOUBLE, randn
from hypothesis import given
from hypothesis import strategies as st
from posterior_cases import POSTERIORS, Make, Twin, every_posterior
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting import Posterior, posteriors


def test_every_posterior_is_among_the_cases() -> None:
    kinds = {
        kind
        for kind in vars(posteriors).values()
        if inspect.isclass(kind) and issubclass(kind, Posterior) and kind is not Posterior
    }
    assert {type(make(torch.zeros(1, 3))) for make, _ in POSTERIORS.values()} == kinds


@every_posterior
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=12))
def test_every_answer_is_the_loops(make: Make, twin: Twin, values: list[float]) -> None:
    found = make(torch.tensor([values], dtype=DOUBLE)).log_prob().exp()[0].tolist()
    assert found == pytest.approx(twin(values), rel=1e-9, abs=1e-13)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)


@every_posterior
def test_items_of_a_batch_are_the_items_alone(make: Make, twin: Twin) -> None:
    values = 3 * randn(5, 8)
    together = make(values).log_prob()
    for i in range(5):
        alone = make(values[i : i + 1]).log_prob()[0]
        assert_close(together[i], alone, rtol=1e-13, atol=1e-13)


@every_posterior
def test_gradients_are_finite_differences(make: Make, twin: Twin) -> None:
    def finite(values: Tensor) -> Tensor:
        found = make(values).log_prob()
        return found[found != -torch.inf]

    assert torch.autograd.gradcheck(finite, (randn(3, 6).requires_grad_(),))


@every_posterior
@pytest.mark.parametrize("kind", ["random", "high", "low", "alternating"])
def test_extreme_logits_give_no_nan_in_float32(make: Make, twin: Twin, kind: str) -> None:
    values = {
        "random": 1e4 * randn(2, 1001).clamp(-1, 1),
        "high": torch.full((2, 1001), 1e4),
        "low": torch.full((2, 1001), -1e4),
        "alternating": 1e4 * (1 - 2.0 * (torch.arange(1001) % 2)).expand(2, 1001),
    }[kind].float()
    values.requires_grad_()
    found = make(values).log_prob()
    assert not found.isnan().any()
    assert (found < torch.inf).all()
    (gradient,) = torch.autograd.grad(found[found.isfinite()].sum(), values)
    assert gradient.isfinite().all()
    assert_close(found.exp().sum(1), torch.ones(2), rtol=1e-4, atol=0)


@every_posterior
def test_impossible_input_is_named(make: Make, twin: Twin) -> None:
    values = torch.zeros(3, 5)
    for poison in (math.nan, math.inf):
        broken = values.clone()
        broken[1, 2] = poison
        with pytest.raises(InputError, match=rf"logits .* got {poison} at problem 1, step 2"):
            make(broken)
    with pytest.raises(InputError, match=r"must have the shape \[batch, T"):
        make(torch.zeros(2, 3, 5))
    assert make(values[:0]).log_prob().shape == (0, 5)
