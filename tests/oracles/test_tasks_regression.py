"""Linear regression against the thesis' likelihood, and the laws that problems are drawn from."""

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import torch
from task_oracles import DOUBLE, assert_law, randn, seeded, tensors
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.tasks import TaskFamily, diabetes, regression
from haltwise.tasks.diabetes import Diabetes
from haltwise.tasks.least_squares import gaussian_regression
from haltwise.tasks.regression import LinearRegression


def duplicated(design: Tensor) -> Tensor:
    return design[..., [0, 0, 1, 1, 1]]


def masked(design: Tensor) -> Tensor:
    return design * (
        torch.arange(design.shape[1])[:, None] < torch.tensor([1, 4, 7])[:, None, None]
    )


DESIGNS = {
    "tall": randn(3, 30, 4),
    "square": randn(3, 5, 5),
    "fewer rows than columns": randn(3, 2, 6),
    "rank-deficient": duplicated(randn(3, 9, 2)),
    "ill-conditioned": randn(3, 12, 3) * torch.tensor([1.0, 1e-3, 1e3], dtype=DOUBLE),
    "masked": masked(randn(3, 7, 3)),
    "zero": torch.zeros(3, 4, 2, dtype=DOUBLE),
}


@pytest.mark.parametrize("beta", [0.25, 1.0, 9.0])
@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_regression_loss_is_the_thesis_negative_log_likelihood(design: Tensor, beta: float) -> None:
    rows = design.abs().sum(-1) > 0
    rows[:, 0] = True  # a zero row within the count counts
    count = rows.sum(1).double()
    observed = 3 * randn(*design.shape[:2], seed=4) * rows
    start = torch.zeros(3, design.shape[2], dtype=DOUBLE)
    batch = gaussian_regression(design, observed, count, beta, start)
    scale = 1 / design.abs().amax((0, 1)).clamp_min(1)

    def naive(params: Tensor) -> Tensor:
        mean = (design * params[:, None, :]).sum(-1)
        noise = torch.distributions.Normal(mean, torch.tensor(beta, dtype=DOUBLE).rsqrt())
        log_prob: Tensor = noise.log_prob(observed)
        return -(log_prob * rows).sum(1)

    for seed in (5, 6):
        params = randn(*start.shape, seed=seed) * scale
        assert_close(batch.evaluate(params, 0).loss, naive(params), rtol=1e-12, atol=1e-12)
    least = naive(batch.minimizer)
    assert_close(batch.reference_loss, least, rtol=1e-11, atol=1e-11)
    assert (batch.evaluate(batch.minimizer, 0).grad.abs() * scale <= 1e-8).all()
    for seed in (7, 8):
        assert (naive(batch.minimizer + 0.1 * randn(*start.shape, seed=seed)) >= least).all()


def test_float32_excess_near_the_minimum_survives_a_large_loss() -> None:
    design, observed = randn(3, 200, 4), 1e3 * randn(3, 200, seed=2)
    start = torch.zeros(3, 4, dtype=DOUBLE)
    count = torch.full((3,), 200.0, dtype=DOUBLE)
    exact = gaussian_regression(design, observed, count, 1.0, start)
    near = exact.minimizer + 0.01 * randn(3, 4, seed=3)
    single = dataclasses.replace(
        exact, **{name: value.float() for name, value in tensors(exact).items()}
    )
    found, expected = single.evaluate(near.float(), 0), exact.evaluate(near, 0)
    assert (exact.reference_loss / expected.excess > 1e7).all()
    assert_close(found.excess.double(), expected.excess, rtol=1e-2, atol=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["design", "observations"])
def test_nonfinite_data_are_refused(where: str, poison: float) -> None:
    data = {"design": randn(3, 4, 2), "observations": randn(3, 4)}
    data[where][1] = poison
    with pytest.raises(InputError, match=f"{where} of 1 of 3 regressions"):
        gaussian_regression(
            data["design"], data["observations"], torch.full((3,), 4.0), 1.0, torch.zeros(3, 2)
        )


def test_thesis_regression_draws_what_equation_15_says() -> None:
    family = LinearRegression(alpha=1 / 16, beta=4.0)
    design, truth, mask, count = family.draw(2000, seeded())
    assert mask.all()
    assert (count == 10).all()
    assert (design[..., 0] == 1).all()
    assert_law(design[..., 1], scipy.stats.uniform(-2, 4))
    assert_law(truth, scipy.stats.norm(0, 4))


def test_noise_has_precision_beta() -> None:
    beta, rows = 4.0, 10
    batch = LinearRegression(beta=beta).sample(3000, seeded(), dtype=DOUBLE)
    normalizer = rows / 2 * math.log(2 * math.pi / beta)
    assert_law(2 * (batch.reference_loss - normalizer), scipy.stats.chi2(rows - 2))


def test_spread_is_a_log_normal_factor_of_all_columns_but_the_intercept() -> None:
    settings: Any = {"num_params": 3, "inputs": "normal", "intercept": True}
    plain, spread = (
        LinearRegression(spread=sigma, **settings).draw(3000, seeded())[0] for sigma in (0.0, 0.7)
    )
    assert (spread[..., 0] == 1).all()
    factor = spread[..., 1:] / plain[..., 1:]
    assert_close(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-12, atol=0)
    assert_law(factor[:, 0, 0].log(), scipy.stats.norm(0, 0.7))


def test_condition_keeps_the_variance_and_ties_the_columns() -> None:
    conditions = []
    for decades in (0.0, 3.0):
        rows: Any = {"min_observations": 400, "max_observations": 400}
        family = LinearRegression(
            num_params=3, inputs="normal", intercept=False, condition_decades=decades, **rows
        )
        design = family.draw(1000, seeded())[0]
        covariance = torch.einsum("bni,bnj->bij", design, design) / 400
        assert_close(covariance.mean(0), torch.eye(3, dtype=DOUBLE), rtol=0, atol=0.03)
        conditions.append(torch.linalg.cond(covariance))
    assert conditions[0].max() < 2
    # 10^(3 u) at the widest, of which unit columns take away a part.
    assert 100 < conditions[1].max() < 3000
    assert conditions[1].median() > 2


def test_signal_decades_scale_the_true_parameters_alone() -> None:
    plain, scaled = (
        LinearRegression(signal_decades=decades).draw(2000, seeded()) for decades in (0.0, 1.0)
    )
    assert torch.equal(plain[0], scaled[0])
    assert_law(-(scaled[1] / plain[1])[:, 0].log10(), scipy.stats.uniform())


@pytest.mark.parametrize("intercept", [False, True])
def test_the_spectral_norm_is_set_and_the_shape_of_the_problem_kept(intercept: bool) -> None:
    settings: Any = {"num_params": 3, "max_observations": 30, "intercept": intercept}
    plain, scaled = (
        LinearRegression(spectral_norm=norm, **settings).draw(200, seeded()) for norm in (None, 5.0)
    )
    singular = [np.linalg.svd(design.numpy(), compute_uv=False) for design, *_ in (plain, scaled)]
    assert_close(singular[1][:, 0], np.full(200, 5.0), rtol=1e-12, atol=0)
    ratios = [value[:, 1:] / value[:, :1] for value in singular]
    assert_close(ratios[0], ratios[1], rtol=1e-11, atol=0)
    assert all(map(torch.equal, plain[1:], scaled[1:]))


@pytest.mark.parametrize(
    ("family", "module"), [(LinearRegression, regression), (Diabetes, diabetes)]
)
def test_the_number_of_rows_is_log_uniform_and_no_row_is_drawn_twice(
    family: Callable[..., TaskFamily], module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = mock.Mock(wraps=gaussian_regression)
    monkeypatch.setattr(module, "gaussian_regression", spy)
    low, high, num = 5, 40, 2000
    family(min_observations=low, max_observations=high).sample(num, seeded())
    design, observed, count = spy.call_args.args[:3]
    for rows in ((design != 0).any(-1), observed != 0):
        assert torch.equal(rows, torch.arange(high) < count[:, None])
    assert (count.min(), count.max()) == (low, high)
    edges = np.log(np.arange(low, high + 2))
    expected = np.diff(edges) / (edges[-1] - edges[0]) * num
    found = np.bincount(count.long().numpy(), minlength=high + 1)[low:]
    assert scipy.stats.chisquare(found, expected).pvalue > 1e-3
    for rows, length in zip(design[:50], count.long().tolist(), strict=False):
        assert len(rows[:length].unique(dim=0)) == length
