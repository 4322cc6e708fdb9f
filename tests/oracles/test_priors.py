"""The priors against their definitions, against each other and against their own samples."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.testing import assert_close

from haltwise._core.errors import InputError
from haltwise.halting.priors import HorizonPrior, TruncatedGeometric

DOUBLE = torch.float64
RATES = [0.01, 0.3, 0.5, 0.9, 0.99, 0.998]
HORIZONS = [0, 1, 7, 60]


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def support(nu: float) -> Tensor:
    """Integers until r^T is below rounding."""
    return torch.arange(math.ceil(2 * math.log(1e-20) / math.log(nu)) + 2, dtype=DOUBLE)


def horizon_probs(nu: float) -> np.ndarray:
    """p(T) of thesis Eq. 13, as printed."""
    r, horizon = math.sqrt(nu), support(nu).numpy()
    return r**horizon * (1 - r ** (horizon + 1)) * (1 - nu)


def truncated_probs(nu: float, horizon: int) -> np.ndarray:
    """p(t|T): r^t over its sum."""
    powers: np.ndarray = math.sqrt(nu) ** np.arange(horizon + 1)
    return np.asarray(powers / powers.sum())


def moments(probs: np.ndarray) -> tuple[float, float]:
    values = np.arange(len(probs))
    mean = (probs * values).sum()
    return mean, (probs * (values - mean) ** 2).sum()


# --- Definitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", RATES)
def test_horizon_prior_is_the_printed_formula_and_sums_to_one(nu: float) -> None:
    probs = HorizonPrior(tensor(nu)).log_prob(support(nu)).exp()
    assert_close(probs.numpy(), horizon_probs(nu), rtol=1e-11, atol=0)
    assert abs(probs.sum() - 1) < 1e-12


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("nu", RATES)
def test_truncated_geometric_is_proportional_to_powers_of_the_root(nu: float, horizon: int) -> None:
    law = TruncatedGeometric(tensor(nu), horizon)
    probs = law.log_prob(torch.arange(horizon + 1)).exp()
    assert_close(probs.numpy(), truncated_probs(nu, horizon), rtol=1e-11, atol=0)
    assert abs(probs.sum() - 1) < 1e-12


@pytest.mark.parametrize("nu", RATES)
def test_mixing_over_horizons_gives_the_geometric_prior(nu: float) -> None:
    horizons = support(nu)
    steps = horizons[: min(len(horizons), 300)]
    conditional = TruncatedGeometric(tensor(nu), horizons[:, None], validate_args=False)
    joint = conditional.log_prob(steps) + HorizonPrior(tensor(nu)).log_prob(horizons)[:, None]
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
    survival = HorizonPrior(tensor(nu)).log_survival(torch.arange(len(tails))).exp()
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


# --- Moments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", RATES)
def test_horizon_moments_are_the_numeric_sums(nu: float) -> None:
    law = HorizonPrior(tensor(nu))
    expected = tensor(moments(horizon_probs(nu)))
    assert_close(torch.stack((law.mean, law.variance)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("nu", RATES)
def test_truncated_moments_are_the_numeric_sums(nu: float, horizon: int) -> None:
    law = TruncatedGeometric(tensor(nu), horizon)
    expected = tensor(moments(truncated_probs(nu, horizon)))
    assert_close(torch.stack((law.mean, law.variance)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("price", [1e-2, 1e-4, 1e-6])
def test_truncated_moments_survive_a_small_price_in_float32(price: float) -> None:
    """nu = exp(-2 price) next to one: the two terms of the textbook formulas cancel."""
    nu = torch.tensor(math.exp(-2 * price))
    law = TruncatedGeometric(nu, torch.tensor(HORIZONS))
    expected = [moments(truncated_probs(nu.item(), horizon)) for horizon in HORIZONS]
    found = torch.stack((law.mean, law.variance), 1).double()
    assert_close(found, tensor(expected), rtol=1e-4, atol=1e-6)
    assert law.stddev.isfinite().all()


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
    values = HorizonPrior(tensor(nu)).sample((20000,), generator)
    assert_sampled_from(values, horizon_probs(nu))


@pytest.mark.parametrize("horizon", [1, 7, 60])
@pytest.mark.parametrize("nu", [0.3, 0.9, 0.99])
def test_truncated_samples_follow_the_law(
    nu: float, horizon: int, generator: torch.Generator
) -> None:
    values = TruncatedGeometric(tensor(nu), horizon).sample((20000,), generator)
    assert_sampled_from(values, truncated_probs(nu, horizon))


@pytest.mark.parametrize("make", [HorizonPrior, lambda nu: TruncatedGeometric(nu, 5)])
def test_samples_repeat_with_the_generator_and_carry_no_graph(
    make: Callable[[Tensor], HorizonPrior | TruncatedGeometric],
) -> None:
    law = make(tensor([0.2, 0.9]).requires_grad_())
    one, same = (law.sample((3,), torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.shape == (3, 2)
    assert torch.equal(one, same)
    assert not one.requires_grad


# --- Kullback-Leibler divergence -----------------------------------------------------------------


def brute_force_kl(p: np.ndarray, q: np.ndarray) -> float:
    return math.inf if len(p) > len(q) else float((p * np.log(p / q[: len(p)])).sum())


@pytest.mark.parametrize("horizons", [(0, 0), (0, 7), (7, 7), (7, 60), (8, 7), (60, 0)])
def test_truncated_kl_is_the_sum_and_infinite_beyond_the_support(
    horizons: tuple[int, int],
) -> None:
    nus = tensor(RATES)
    first = TruncatedGeometric(nus[:, None], horizons[0])
    second = TruncatedGeometric(nus, horizons[1])
    expected = [
        [
            brute_force_kl(truncated_probs(a, horizons[0]), truncated_probs(b, horizons[1]))
            for b in RATES
        ]
        for a in RATES
    ]
    assert_close(kl_divergence(first, second), tensor(expected), rtol=1e-9, atol=1e-11)


def test_horizon_kl_is_the_sum() -> None:
    nus = tensor(RATES)
    found = kl_divergence(HorizonPrior(nus[:, None]), HorizonPrior(nus))
    for i, a in enumerate(RATES):
        steps = support(a).numpy()
        p = horizon_probs(a)
        for j, b in enumerate(RATES):
            log_q = steps / 2 * math.log(b) + np.log1p(-(b ** ((steps + 1) / 2))) + math.log1p(-b)
            expected = (p * (np.log(p) - log_q)).sum()
            assert abs(found[i, j] - expected) < 1e-9 * (1 + expected)


# --- The interface of torch.distributions --------------------------------------------------------


def test_batch_shapes_broadcast_and_expand() -> None:
    horizon = HorizonPrior(tensor([0.2, 0.5, 0.9]))
    truncated = TruncatedGeometric(tensor([0.2, 0.5, 0.9]), torch.tensor([[3], [5]]))
    assert horizon.batch_shape == (3,)
    assert truncated.batch_shape == truncated.mean.shape == truncated.variance.shape == (2, 3)
    for law in (horizon, truncated):
        wide = law.expand((4, *law.batch_shape))
        assert type(wide) is type(law)
        assert wide.batch_shape == wide.mean.shape == (4, *law.batch_shape)
        value = torch.ones(wide.batch_shape)
        assert_close(wide.log_prob(value)[2], law.log_prob(value[2]), rtol=0, atol=0)
        assert wide.sample((6,)).shape == (6, *wide.batch_shape)
        assert law.event_shape == wide.event_shape == ()


def test_numbers_serve_as_arguments() -> None:
    assert HorizonPrior(0.9).log_prob(torch.tensor(0.0)).dtype == torch.float32
    assert TruncatedGeometric(0.9, 3).mean.shape == ()


# Asked for: torch.compile turns validation off for the whole process, by default.
@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize(
    ("law", "outside"),
    [
        (HorizonPrior(0.9, validate_args=True), -1.0),
        (HorizonPrior(0.9, validate_args=True), 0.5),
        (TruncatedGeometric(0.9, 3, validate_args=True), -1.0),
        (TruncatedGeometric(0.9, 3, validate_args=True), 4.0),
        (TruncatedGeometric(0.9, 3, validate_args=True), 1.5),
    ],
)
def test_values_outside_the_support_are_refused(
    law: Distribution, outside: float, expand: bool
) -> None:
    law = law.expand((2,)) if expand else law
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor(outside))


def test_without_validation_nothing_is_possible_beyond_the_horizon() -> None:
    law = TruncatedGeometric(0.9, 3, validate_args=False)
    assert law.log_prob(torch.tensor([-1.0, 4.0])).tolist() == [-math.inf, -math.inf]
    assert law.log_prob(torch.tensor([0.0, 3.0])).isfinite().all()


@pytest.mark.parametrize("nu", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_a_continuation_outside_the_open_unit_interval_is_refused(nu: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        HorizonPrior(tensor([0.5, nu]))
    with pytest.raises(InputError, match="between 0 and 1"):
        TruncatedGeometric(nu, 3)


def test_a_negative_horizon_is_refused() -> None:
    with pytest.raises(InputError, match="at least 0"):
        TruncatedGeometric(0.9, torch.tensor([2, -1]))


def test_log_probs_are_differentiable_in_the_continuation() -> None:
    steps = torch.arange(4.0, dtype=DOUBLE)
    nu = tensor([0.3, 0.9])[:, None].requires_grad_()
    assert torch.autograd.gradcheck(lambda nu: HorizonPrior(nu).log_prob(steps), nu)
    assert torch.autograd.gradcheck(lambda nu: TruncatedGeometric(nu, 3).log_prob(steps), nu)
    assert torch.autograd.gradcheck(lambda nu: TruncatedGeometric(nu, 3).mean, nu)
    assert torch.autograd.gradcheck(lambda nu: TruncatedGeometric(nu, 3).variance, nu)
