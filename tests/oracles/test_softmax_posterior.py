"""The thesis' posterior: its stream, its divergence from the prior, steps of probability zero."""

import math

import pytest
import torch
from draws import DOUBLE, randn
from hypothesis import given
from hypothesis import strategies as st
from posterior_cases import softmax_loop
from torch.distributions import Categorical
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting import SoftmaxPosterior


def test_the_stream_is_the_softmax_over_what_has_been_seen() -> None:
    increments = randn(7, 3)
    logits = torch.cat((torch.zeros(1, 3), increments)).cumsum(0).T
    for horizon, posterior in enumerate(SoftmaxPosterior.stream(iter(increments), increments[0])):
        assert posterior.horizon == horizon
        assert_close(posterior.log_prob().exp(), logits[:, : horizon + 1].softmax(1))
    assert horizon == 7


@pytest.mark.parametrize("continuation", [0.3, 0.99])
def test_kl_is_zero_at_the_prior_and_brute_force_elsewhere(continuation: float) -> None:
    steps = torch.arange(6, dtype=DOUBLE)
    prior = steps * 0.5 * math.log(continuation)
    other = torch.tensor([0.0, 3.0, -1.0, 2.0, -torch.inf, 0.5], dtype=DOUBLE)
    kl = SoftmaxPosterior(torch.stack((prior, other))).kl(continuation)
    q, p = Categorical(logits=other).probs, Categorical(logits=prior).probs
    brute = sum(a * math.log(a / b) for a, b in zip(q.tolist(), p.tolist(), strict=True) if a > 0)
    assert_close(kl, torch.tensor([0.0, brute], dtype=DOUBLE))


def test_a_logit_of_minus_infinity_gives_a_step_no_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -torch.inf]])
    posterior = SoftmaxPosterior(logits)
    shorter = SoftmaxPosterior(logits[1:, :2])
    assert_close(posterior.log_prob()[1, :2], shorter.log_prob()[0])
    assert posterior.log_prob()[1, 2] == posterior.log_survival()[1, 2] == -torch.inf
    assert posterior.mode().tolist() == [2, 1]
    assert posterior.kl(0.9).isfinite().all()


def test_logits_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3,\)"):
        SoftmaxPosterior(torch.zeros(3))


def test_an_item_without_a_finite_logit_is_refused() -> None:
    logits = torch.zeros(3, 2)
    logits[1] = -torch.inf
    with pytest.raises(InputError, match="problem 1 has no finite logit"):
        SoftmaxPosterior(logits)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12))
def test_logits_far_apart_agree_with_a_loop(values: list[float]) -> None:
    posterior = SoftmaxPosterior(torch.tensor([values], dtype=DOUBLE))
    expected = softmax_loop(values)
    assert posterior.log_prob().exp()[0].tolist() == pytest.approx(expected, abs=1e-12)
    survival = [math.fsum(expected[step:]) for step in range(len(values))]
    assert posterior.log_survival().exp()[0].tolist() == pytest.approx(survival, abs=1e-12)
    hazard, reached = posterior.log_hazard().exp()[0].tolist(), 1.0
    for step, probability in enumerate(expected):  # stick-breaking gives q back
        assert hazard[step] * reached == pytest.approx(probability, abs=1e-9)
        reached *= 1 - hazard[step]
    assert hazard[-1] == pytest.approx(1)
