"""What every posterior must satisfy: slow loops, finite differences, extremes, impossible input."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from draws import DOUBLE, randn
from hypothesis import given
from hypothesis import strategies as st
from posterior_cases import POSTERIORS, QUANTITIES, Make, Twin, every_posterior
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
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=12), st.floats(0.05, 0.999))
def test_every_answer_is_the_loops(make: Make, twin: Twin, values: list[float], nu: float) -> None:
    posterior = make(torch.tensor([values], dtype=DOUBLE))
    assert posterior.horizon == len(values) - 1
    expected = twin(values)
    found = posterior.log_prob().exp()[0].tolist()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    survival = [math.fsum(expected[step:]) for step in range(len(values))]
    assert posterior.log_survival().exp()[0].tolist() == pytest.approx(
        survival, rel=1e-9, abs=1e-13
    )
    hazard, reached = posterior.log_hazard().exp()[0].tolist(), 1.0
    for step, probability in enumerate(expected):  # the hazard gives q back
        assert hazard[step] * reached == pytest.approx(probability, rel=1e-6, abs=1e-9)
        reached *= 1 - hazard[step]
    last = max(step for step, probability in enumerate(expected) if probability > 0)
    assert hazard[last:] == [pytest.approx(1, abs=1e-12), *[0.0] * (len(values) - last - 1)]
    assert expected[int(posterior.mode())] == pytest.approx(max(expected), rel=1e-12)
    r = math.sqrt(nu)
    prior = [r**step * (1 - r) / (1 - r ** len(values)) for step in range(len(values))]
    kl = sum(q * math.log(q / p) for q, p in zip(expected, prior, strict=True) if q > 0)
    assert posterior.kl(nu).item() == pytest.approx(kl, rel=1e-8, abs=1e-10)


@every_posterior
@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_items_of_a_batch_are_the_items_alone(
    make: Make, twin: Twin, quantity: Callable[[Posterior], Tensor]
) -> None:
    values = 3 * randn(5, 8)
    together = quantity(make(values))
    for i in range(5):
        assert_close(together[i], quantity(make(values[i : i + 1]))[0], rtol=1e-13, atol=1e-13)


@every_posterior
@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_gradients_are_finite_differences(
    make: Make, twin: Twin, quantity: Callable[[Posterior], Tensor]
) -> None:
    def finite(values: Tensor) -> Tensor:
        found = quantity(make(values))
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
    posterior = make(values)
    for name, quantity in QUANTITIES.items():
        found = quantity(posterior)
        assert not found.isnan().any(), name
        assert (found < torch.inf).all(), name
        (gradient,) = torch.autograd.grad(found[found.isfinite()].sum(), values)
        assert gradient.isfinite().all(), name
    assert_close(posterior.log_prob().exp().sum(1), torch.ones(2), rtol=1e-4, atol=0)
    survival = posterior.log_survival()
    assert (survival[:, 1:] <= survival[:, :-1]).all()
    assert (posterior.log_hazard() <= 1e-6).all()


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
    with pytest.raises(InputError, match=r"\[3\], got \[2\]"):
        make(values).kl(torch.tensor([0.5, 0.5]))
    assert make(values[:0]).log_prob().shape == (0, 5)
