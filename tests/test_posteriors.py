"""The softmax posterior against slow loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from haltwise import InputError
from haltwise.halting import SoftmaxPosterior

logits_lists = st.lists(st.floats(-50, 50), min_size=1, max_size=12)


@settings(deadline=None, max_examples=50)
@given(logits_lists)
def test_probability_survival_and_hazard_agree_with_a_loop(values: list[float]) -> None:
    posterior = SoftmaxPosterior(torch.tensor([values], dtype=torch.float64))
    weights = [math.exp(value - max(values)) for value in values]
    probabilities = [weight / sum(weights) for weight in weights]
    found = posterior.log_prob().exp()[0].tolist()
    assert found == pytest.approx(probabilities, abs=1e-12)
    survival = [sum(probabilities[step:]) for step in range(len(values))]
    assert posterior.log_survival().exp()[0].tolist() == pytest.approx(survival, abs=1e-12)
    hazard, reached = posterior.log_hazard().exp()[0].tolist(), 1.0
    for step, probability in enumerate(probabilities):  # stick-breaking gives q back
        assert hazard[step] * reached == pytest.approx(probability, abs=1e-9)
        reached *= 1 - hazard[step]
    assert hazard[-1] == pytest.approx(1)
    assert probabilities[int(posterior.mode())] == pytest.approx(max(probabilities))


def test_the_stream_is_the_softmax_over_what_has_been_seen() -> None:
    increments = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    logits = torch.cat((torch.zeros(1, 3), increments)).cumsum(0).T
    for horizon, posterior in enumerate(SoftmaxPosterior.stream(iter(increments), increments[0])):
        assert posterior.horizon == horizon
        expected = logits[:, : horizon + 1].softmax(1)
        torch.testing.assert_close(posterior.log_prob().exp(), expected)
    assert horizon == 7


@pytest.mark.parametrize("continuation", [0.3, 0.99])
def test_kl_is_zero_at_the_prior_and_brute_force_elsewhere(continuation: float) -> None:
    steps = torch.arange(6, dtype=torch.float64)
    prior = steps * 0.5 * math.log(continuation)
    other = torch.tensor([0.0, 3.0, -1.0, 2.0, -torch.inf, 0.5], dtype=torch.float64)
    kl = SoftmaxPosterior(torch.stack((prior, other))).kl(continuation)
    q, p = Categorical(logits=other).probs, Categorical(logits=prior).probs
    brute = sum(a * math.log(a / b) for a, b in zip(q.tolist(), p.tolist(), strict=True) if a > 0)
    torch.testing.assert_close(kl, torch.tensor([0.0, brute], dtype=torch.float64))


def test_a_ragged_horizon_is_masked() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -torch.inf]])
    posterior = SoftmaxPosterior(logits)
    shorter = SoftmaxPosterior(logits[1:, :2])
    torch.testing.assert_close(posterior.log_prob()[1, :2], shorter.log_prob()[0])
    assert posterior.mode().tolist() == [2, 1]
    assert posterior.kl(0.9).isfinite().all()


def test_logits_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3,\)"):
        SoftmaxPosterior(torch.zeros(3))
