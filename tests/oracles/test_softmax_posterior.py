"""The thesis' posterior: steps of probability zero, impossible logits, logits far apart."""

import pytest
import torch
from draws import DOUBLE
from hypothesis import given
from hypothesis import strategies as st
from posterior_cases import softmax_loop
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting import SoftmaxPosterior


def test_a_logit_of_minus_infinity_gives_a_step_no_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -torch.inf]])
    posterior = SoftmaxPosterior(logits)
    shorter = SoftmaxPosterior(logits[1:, :2])
    assert_close(posterior.log_prob()[1, :2], shorter.log_prob()[0])
    assert posterior.log_prob()[1, 2] == -torch.inf


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
