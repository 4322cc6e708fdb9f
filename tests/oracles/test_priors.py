"""The horizon prior against its definition, the geometric prior and its own samples."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.testing import assert_close

from haltwise._core.errors import InputError
from haltwise.halting import Softmax
from haltwise.halting.objectives import DEFAULT_CONTINUATION
from haltwise.halting.priors import HorizonPrior

DOUBLE = torch.float64
RATES = [0.01, 0.3, 0.5, 0.9, 0.99, 0.998]


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def support(nu: float) -> Tensor:
    """Integers until r^T is below rounding."""
    return torch.arange(math.ceil(2 * math.log(1e-20) / math.log(nu)) + 2, dtype=DOUBLE)


def horizon_probs(nu: float) -> np.ndarray:
    """p(T) of thesis Eq. 13, as printed."""
    r, horizon = math.sqrt(nu), support(nu).numpy()
    return r**horizon * (1 - r ** (horizon + 1)) * (1 - nu)


# --- Definitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", RATES)
def test_horizon_prior_is_the_printed_formula_and_sums_to_one(nu: float) -> None:
    probs = HorizonPrior(tensor(nu)).log_prob(support(nu)).exp()
    assert_close(probs.numpy(), horizon_probs(nu), rtol=1e-11, atol=0)
    assert abs(probs.sum() - 1) < 1e-12


@pytest.mark.parametrize("nu", RATES)
def test_mixing_over_horizons_gives_the_geometric_prior(nu: float) -> None:
    horizons = support(nu)
    steps = horizons[: min(len(horizons), 300)]
    powers = 0.5 * math.log(nu) * steps
    inside = powers.masked_fill(steps > horizons[:, None], -math.inf)
    mass = 0.5 * math.log(nu) * horizons
    conditional = inside - mass.logcumsumexp(0)[:, None]  # p(t|T): r^t over its sum
    joint = conditional + HorizonPrior(tensor(nu)).log_prob(horizons)[:, None]
    expected = (1 - nu) * nu**steps
    assert_close(joint.exp().sum(0), expected, rtol=0, atol=1e-12)


def test_equation_14_as_printed_does_not_sum_to_one() -> None:
    r = math.sqrt(0.9)
    printed = sum((1 - r) / (1 - r**11) for _ in range(11))
    assert round(printed, 2) == 1.28
    mended = sum((1 - r) / (1 - r**11) * r**t for t in range(11))
    assert abs(mended - 1) < 1e-14


@pytest.mark.parametrize("nu", RATES)
def test_log_survival_is_the_log_of_the_tail_sum(nu: float) -> None:
    tails = torch.from_numpy(horizon_probs(nu)).flip(0).cumsum(0).flip(0)
    survival = HorizonPrior(tensor(nu)).log_survival(torch.arange(len(tails), dtype=DOUBLE)).exp()
    assert_close(survival, tails, rtol=1e-10, atol=1e-16)
    assert abs(survival[0] - 1) < 1e-15


@pytest.mark.parametrize("longest", [0, 1, 5, 40])
def test_weights_are_the_prior_with_its_tail_on_the_last_horizon(longest: int) -> None:
    weights = HorizonPrior(tensor(RATES)).weights(longest)
    assert weights.shape == (len(RATES), longest + 1)
    for row, nu in zip(weights, RATES, strict=True):
        probs = np.pad(horizon_probs(nu), (0, longest))
        expected = np.append(probs[:longest], probs[longest:].sum())
        assert_close(row, torch.from_numpy(expected), rtol=1e-9, atol=1e-19)
        assert abs(row.sum() - 1) < 1e-12


# --- Samples -------------------------------------------------------------------------------------


def assert_sampled_from(values: Tensor, probs: np.ndarray) -> None:
    """Chi-square over the cells that expect five or more, the rest pooled."""
    assert (values == values.floor()).all()
    assert values.min() >= 0
    observed = np.bincount(values.long().numpy(), minlength=len(probs)).astype(float)
    assert len(observed) == len(probs)
    expected = probs * len(values)
    rare = expected < 5
    pooled = [np.append(cells[~rare], cells[rare].sum()) for cells in (observed, expected)]
    if pooled[1][-1] < 5:
        pooled = [np.append(cells[:-2], cells[-2:].sum()) for cells in pooled]
    assert scipy.stats.chisquare(*pooled, sum_check=False).pvalue > 1e-4


@pytest.mark.parametrize("nu", [0.3, 0.9, 0.99])
def test_horizon_samples_follow_the_law(nu: float, generator: torch.Generator) -> None:
    values = HorizonPrior(tensor(nu).expand(20000)).sample(generator)
    assert_sampled_from(values, horizon_probs(nu))


def test_samples_repeat_with_the_generator_and_carry_no_graph() -> None:
    law = HorizonPrior(tensor([0.2, 0.9]).requires_grad_())
    one, same = (law.sample(torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.shape == (2,)
    assert torch.equal(one, same)
    assert not one.requires_grad


# --- Input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_a_continuation_outside_the_open_unit_interval_is_refused(nu: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        HorizonPrior(tensor([0.5, nu]))


def test_log_probs_are_differentiable_in_the_continuation() -> None:
    steps = torch.arange(4.0, dtype=DOUBLE)
    nu = tensor([0.3, 0.9])[:, None].requires_grad_()
    assert torch.autograd.gradcheck(lambda nu: HorizonPrior(nu).log_prob(steps), nu)


def test_the_default_prior_expects_27_5_steps() -> None:
    """E[T] = r / (1 - r) + nu / (1 - nu) at nu = .9, as docs/theory.md says, of both defaults."""
    for nu in (DEFAULT_CONTINUATION, Softmax().continuation):
        assert nu is not None
        assert nu**0.5 / (1 - nu**0.5) + nu / (1 - nu) == pytest.approx(27.5, abs=0.05)
