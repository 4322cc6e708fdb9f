"""Every family keeps one contract; each loss equals its definition written without thought."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from image_files import write_mnist
from torch import Tensor
from torch.testing import assert_close

from haltwise import tasks
from haltwise._core.errors import InputError
from haltwise.tasks import (
    TaskBatch,
    TaskFamily,
    diabetes,
    logistic_regression,
    matrix_factorization,
    minibatch_regression,
    regression,
)
from haltwise.tasks.cifar10 import CifarConvolutional
from haltwise.tasks.diabetes import Diabetes
from haltwise.tasks.images import ImageClassification
from haltwise.tasks.least_squares import LeastSquaresBatch, gaussian_regression
from haltwise.tasks.logistic_regression import LogisticRegression, LogisticRegressionBatch
from haltwise.tasks.matrix_factorization import DigitFactorization, MatrixFactorizationBatch
from haltwise.tasks.minibatch_regression import MinibatchRegression, MinibatchRegressionBatch
from haltwise.tasks.module import ModuleBatch
from haltwise.tasks.perceptron import Perceptron
from haltwise.tasks.quadratic import Quadratic
from haltwise.tasks.regression import LinearRegression, sample_design
from haltwise.tasks.robust_regression import StudentTBatch, StudentTRegression
from haltwise.tasks.rosenbrock import Rosenbrock, RosenbrockBatch

B = 5
DOUBLE = torch.float64
MINIBATCH = frozenset({"factorization-digits-noisy", "logistic-10d-noisy", "regression-10d-noisy"})
"""Families that are scored by what they do not show."""


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def tensors(batch: TaskBatch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


@pytest.fixture(autouse=True)
def images(tiny_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real formats, tiny files: no test needs real data."""
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tiny_images))


@pytest.fixture(params=sorted(tasks.families()))
def family(request: pytest.FixtureRequest) -> TaskFamily:
    found = tasks.family(request.param)
    if isinstance(found, ImageClassification):
        return dataclasses.replace(found, batch_size=6, num_score=20)
    return found


@pytest.fixture
def batch(family: TaskFamily) -> TaskBatch:
    return family.sample(B, seeded(), dtype=DOUBLE)


@pytest.fixture
def points(batch: TaskBatch) -> Tensor:
    """Parameters of order one around the start."""
    return batch.start + randn(*batch.start.shape, seed=2)


class TestContract:
    """What every family promises."""

    def test_every_tensor_has_the_problems_first(self, family: TaskFamily) -> None:
        batch = family.sample(B, seeded(), dtype=DOUBLE)
        assert batch.start.shape == (batch.num_problems, batch.dim) == (B, family.dim)
        for value in tensors(batch).values():
            assert len(value) == B
            assert value.isfinite().all()

    def test_fields_are_json_values_that_make_the_family_again(self, family: TaskFamily) -> None:
        document = json.loads(json.dumps(dataclasses.asdict(family)))
        assert type(family)(**document) == family

    def test_gradients_equal_five_point_differences(self, batch: TaskBatch, points: Tensor) -> None:
        seen = batch.evaluate(points, 3)
        step = 1e-8 if isinstance(batch, ModuleBatch) else 1e-3  # rectifiers have kinks
        for seed in range(3):
            direction = randn(*points.shape, seed=10 + seed)
            loss, excess = (
                sum(
                    factor * getattr(batch.evaluate(points + k * step * direction, 3), name)
                    for k, factor in ((1, 8), (-1, -8), (2, -1), (-2, 1))
                )
                / (12 * step)
                for name in ("loss", "excess")
            )
            size = seen.grad.norm(dim=1) * direction.norm(dim=1)
            assert (((seen.grad * direction).sum(1) - loss).abs() <= 1e-8 * size).all()
            assert (((seen.excess_grad * direction).sum(1) - excess).abs() <= 1e-8 * size).all()

    def test_gradients_equal_autograd(self, batch: TaskBatch, points: Tensor) -> None:
        points.requires_grad_()
        seen = batch.evaluate(points, 3)
        for value, grad in ((seen.loss, seen.grad), (seen.excess, seen.excess_grad)):
            (expected,) = torch.autograd.grad(value.sum(), points, retain_graph=True)
            assert_close(grad, expected, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("family", sorted(tasks.families().keys() - MINIBATCH), indirect=True)
    def test_excess_is_loss_minus_reference(self, batch: TaskBatch, points: Tensor) -> None:
        seen = batch.evaluate(points, 0)
        assert_close(seen.excess, seen.loss - batch.reference_loss, rtol=1e-11, atol=1e-9)

    @pytest.mark.parametrize("family", sorted(MINIBATCH), indirect=True)
    def test_minibatches_change_what_is_seen_and_not_the_score(
        self, batch: TaskBatch, points: Tensor
    ) -> None:
        assert batch.stochastic
        now, then = batch.evaluate(points, 0), batch.evaluate(points, 10**6)
        assert (now.loss != then.loss).all()
        assert (now.grad != then.grad).any(1).all()
        assert torch.equal(now.excess, then.excess)
        assert torch.equal(now.excess_grad, then.excess_grad)

    def test_an_observation_is_the_visible_part_of_an_evaluation(
        self, batch: TaskBatch, points: Tensor
    ) -> None:
        seen, observed = batch.evaluate(points, 2), batch.observe(points, 2)
        assert torch.equal(seen.loss, observed.loss)
        assert torch.equal(seen.grad, observed.grad)

    def test_a_known_minimizer_is_one(self, batch: TaskBatch) -> None:
        minimizer = batch.minimizer
        if minimizer is None:
            pytest.skip("the family knows no minimizer")
        best, start = batch.evaluate(minimizer, 0), batch.evaluate(batch.start, 0)
        assert (best.excess.abs() <= 1e-14 * start.excess).all()
        assert (best.excess_grad.norm(dim=1) <= 1e-10 * start.grad.norm(dim=1)).all()
        for exponent in range(-6, 3):
            offset = 10.0**exponent * randn(*minimizer.shape, seed=exponent + 20)
            assert (batch.evaluate(minimizer + offset, 0).excess > best.excess).all()

    def test_float32_agrees_with_float64(
        self, family: TaskFamily, batch: TaskBatch, points: Tensor
    ) -> None:
        single = family.sample(B, seeded(), dtype=torch.float32)
        exact, found = batch.evaluate(points, 1), single.evaluate(points.float(), 1)
        values = (*found, *tensors(single).values())
        assert {value.dtype for value in values if value.is_floating_point()} == {torch.float32}
        size = exact.excess_grad.norm(dim=1, keepdim=True)
        assert ((found.excess_grad - exact.excess_grad).abs() <= 1e-4 * size).all()
        assert_close(found.loss.double(), exact.loss, rtol=2e-5, atol=1e-5)
        assert_close(found.excess.double(), exact.excess, rtol=2e-5, atol=1e-5)

    def test_a_generator_gives_the_same_problems_in_every_dtype(self, family: TaskFamily) -> None:
        one, other = seeded(7), seeded(7)
        double = family.sample(B, one, dtype=DOUBLE)
        single = family.sample(B, other, dtype=torch.float32)
        assert torch.equal(one.get_state(), other.get_state())
        assert not torch.equal(one.get_state(), seeded(7).get_state())
        for name, value in tensors(double).items():
            expected = getattr(single, name)
            assert torch.equal(value.to(expected.dtype), expected)

    def test_a_score_is_an_observation_and_an_excess_of_the_problem(
        self, batch: TaskBatch, points: Tensor
    ) -> None:
        scored, observed = batch.score(points, 2), batch.observe(points, 2)
        assert torch.equal(scored.loss, observed.loss)
        assert torch.equal(scored.grad, observed.grad)
        chosen = batch.select(torch.tensor([4, 1])).score(points[[4, 1]], 2)
        assert_close(chosen.excess, scored.excess[[4, 1]], rtol=1e-12, atol=1e-12)
        if not isinstance(batch, ModuleBatch):  # what is observed is what counts
            assert torch.equal(scored.excess, batch.evaluate(points, 2).excess)

    def test_select_commutes_with_evaluate(self, batch: TaskBatch, points: Tensor) -> None:
        index = torch.tensor([3, 0, 3])
        chosen = batch.select(index)
        whole, part = batch.evaluate(points, 1), chosen.evaluate(points[index], 1)
        for value, expected in zip(part, whole, strict=True):
            assert_close(value, expected[index], rtol=1e-12, atol=1e-12)
        assert torch.equal(chosen.reference_loss, batch.reference_loss[index])

    def test_problems_do_not_mix(self, batch: TaskBatch, points: Tensor) -> None:
        poisoned = points.clone()
        poisoned[1] = torch.nan
        others = torch.tensor([0, 2, 3, 4])
        before, after = batch.evaluate(points, 1), batch.evaluate(poisoned, 1)
        for value, expected in zip(after, before, strict=True):
            assert torch.equal(value[others], expected[others])

    def test_problems_differ(self, batch: TaskBatch) -> None:
        assert batch.evaluate(batch.start + 1, 0).loss.unique().numel() == B

    def test_evaluation_leaves_its_arguments_alone(self, batch: TaskBatch, points: Tensor) -> None:
        copy, first = points.clone(), batch.evaluate(points, 1)
        assert all(map(torch.equal, batch.evaluate(points, 1), first))
        assert torch.equal(copy, points)

    def test_an_empty_batch_is_refused(self, family: TaskFamily) -> None:
        with pytest.raises(InputError, match="at least 1 problem, got 0"):
            family.sample(0, seeded())


def test_listing_families_reads_no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tmp_path))
    assert all(family.dim >= 1 for family in tasks.families().values())
    with pytest.raises(InputError, match=r"expected for mnist; name a directory"):
        tasks.family("mnist-mlp").sample(1, seeded())


def test_an_unknown_family_suggests_the_near_names() -> None:
    with pytest.raises(InputError, match="did you mean 'quadratic-10d'"):
        tasks.family("quadratic10d")


# --- Gaussian regression -------------------------------------------------------------------------


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


# --- Laws of the random problems -----------------------------------------------------------------


def assert_law(values: Tensor, law: Any) -> None:
    """Kolmogorov-Smirnov with a fixed seed: fails for any law that is visibly another."""
    assert scipy.stats.kstest(values.flatten().numpy(), law.cdf).pvalue > 1e-3


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
    settings: Any = {"inputs": "normal", "intercept": True, "condition_decades": 0.0}
    plain, spread = (
        sample_design(3000, 6, 3, seeded(), spread=sigma, **settings) for sigma in (0.0, 0.7)
    )
    assert (spread[..., 0] == 1).all()
    factor = spread[..., 1:] / plain[..., 1:]
    assert_close(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-12, atol=0)
    assert_law(factor[:, 0, 0].log(), scipy.stats.norm(0, 0.7))


def test_condition_keeps_the_variance_and_ties_the_columns() -> None:
    conditions = []
    for decades in (0.0, 3.0):
        settings: Any = {"inputs": "normal", "intercept": False, "condition_decades": decades}
        design = sample_design(1000, 400, 3, seeded(), spread=0.0, **settings)
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


def test_quadratics_follow_the_code_of_l2l() -> None:
    batch = Quadratic().sample(300, seeded(), dtype=DOUBLE)
    assert isinstance(batch, LeastSquaresBatch)
    assert_law(batch.factor, scipy.stats.uniform())
    assert_law(batch.target, scipy.stats.uniform())
    assert_law(batch.start, scipy.stats.norm(0, 0.01))
    params = randn(300, 10)
    naive = ((batch.factor @ params.unsqueeze(-1)).squeeze(-1) - batch.target).square().sum(1)
    assert_close(batch.evaluate(params, 0).loss, naive, rtol=1e-12, atol=0)


# --- Minibatches ---------------------------------------------------------------------------------


def every_subset(num_items: int, size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes step t draw the t-th of all subsets, for every problem; says how many there are."""
    subsets = torch.tensor(list(itertools.combinations(range(num_items), size)))

    def draw(seed: Tensor, step: int, items: int, chosen: int) -> Tensor:
        assert (items, chosen) == (num_items, size)
        return subsets[step].expand(len(seed), -1)

    for module in (minibatch_regression, logistic_regression, matrix_factorization):
        monkeypatch.setattr(module, "random_subsets", draw)
    return len(subsets)


def assert_unbiased(batch: TaskBatch, loss: Callable[[Tensor], Tensor], num_steps: int) -> None:
    """What is seen, averaged over `num_steps` steps, is `loss` and its gradient."""
    params = (batch.start + randn(*batch.start.shape, seed=3)).requires_grad_()
    expected = loss(params)
    (grad,) = torch.autograd.grad(expected.sum(), params)
    seen = [batch.observe(params.detach(), step) for step in range(num_steps)]
    assert_close(torch.stack([one.loss for one in seen]).mean(0), expected, rtol=1e-12, atol=0)
    assert_close(torch.stack([one.grad for one in seen]).mean(0), grad, rtol=1e-11, atol=1e-12)


def minibatch_regression_batch(**settings: Any) -> MinibatchRegressionBatch:
    batch = MinibatchRegression(**settings).sample(B, seeded(), dtype=DOUBLE)
    assert isinstance(batch, MinibatchRegressionBatch)
    return batch


def test_regression_minibatches_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = minibatch_regression_batch(num_params=4, num_observations=6, rows_per_step=2, beta=3.0)
    num_subsets = every_subset(6, 2, monkeypatch)

    def loss(params: Tensor) -> Tensor:
        residual = batch.observed - torch.einsum("bnd,bd->bn", batch.design, params)
        return 3.0 / 2 * 2 / 6 * residual.square().sum(1)

    assert_unbiased(batch, loss, num_subsets)


def test_regression_score_is_what_noise_free_minibatches_would_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = minibatch_regression_batch(num_params=4, num_observations=6, rows_per_step=3, beta=0.5)
    clean = torch.einsum("bnd,bd->bn", batch.design, batch.truth)
    noise_free = dataclasses.replace(batch, observed=clean)
    num_subsets = every_subset(6, 3, monkeypatch)
    assert_unbiased(noise_free, lambda params: batch.evaluate(params, 0).excess, num_subsets)


def test_noisy_regression_is_scored_by_one_and_a_half_squared_errors() -> None:
    batch = minibatch_regression_batch()
    params = randn(B, 10)
    error = torch.einsum("bnd,bd->bn", batch.design, params - batch.truth)
    expected = 1.5 * error.square().mean(1)
    assert_close(batch.evaluate(params, 0).excess, expected, rtol=1e-12, atol=0)


def test_minibatch_regressions_draw_what_they_say() -> None:
    family = MinibatchRegression(alpha=1 / 4, beta=4.0, spread=0.7)
    batch = family.sample(2000, seeded(), dtype=DOUBLE)
    assert isinstance(batch, MinibatchRegressionBatch)
    plain = dataclasses.replace(family, spread=0.0).sample(2000, seeded(), dtype=DOUBLE)
    assert isinstance(plain, MinibatchRegressionBatch)
    noise = batch.observed - torch.einsum("bnd,bd->bn", batch.design, batch.truth)
    assert_law(noise, scipy.stats.norm(0, 0.5))
    assert_law(batch.truth, scipy.stats.norm(0, 2))
    assert_law(plain.design, scipy.stats.norm())
    assert_law((batch.design / plain.design)[:, 0, 0].log(), scipy.stats.norm(0, 0.7))
    assert batch.seed.unique().numel() == 2000
    assert not batch.start.any()


# --- Logistic regression -------------------------------------------------------------------------


def logistic(num_problems: int, **settings: Any) -> LogisticRegressionBatch:
    batch = LogisticRegression(**settings).sample(num_problems, seeded(), dtype=DOUBLE)
    assert isinstance(batch, LogisticRegressionBatch)
    return batch


def penalized_log_loss(batch: LogisticRegressionBatch, params: Tensor) -> Tensor:
    logits = torch.einsum("bnd,bd->bn", batch.signed_design, params)
    log_prob: Tensor = torch.distributions.Bernoulli(logits=logits).log_prob(
        torch.ones_like(logits)
    )
    return batch.penalty / 2 * params.square().sum(1) - log_prob.mean(1)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_logistic_loss_is_the_mean_negative_log_likelihood(size: float) -> None:
    batch = logistic(B, rows_per_step=200, penalty=0.3)
    params = size * randn(B, 10)
    expected = penalized_log_loss(batch, params)
    assert_close(batch.evaluate(params, 0).loss, expected, rtol=1e-12, atol=0)


def test_logistic_minibatches_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = logistic(B, num_params=3, num_observations=6, rows_per_step=2, penalty=0.3)
    num_subsets = every_subset(6, 2, monkeypatch)
    assert_unbiased(batch, lambda params: penalized_log_loss(batch, params), num_subsets)


def test_logistic_score_is_the_loss_of_all_observations() -> None:
    noisy, whole = logistic(B), logistic(B, rows_per_step=200)
    params = randn(B, 10)
    seen, expected = noisy.evaluate(params, 4), whole.evaluate(params, 0)
    assert_close(seen.excess, expected.excess, rtol=1e-12, atol=0)
    assert_close(seen.excess_grad, expected.excess_grad, rtol=1e-12, atol=0)
    assert (seen.loss != expected.loss).all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"spread": 2.0, "alpha": 0.01, "penalty": 1e-4},  # separable classes, long designs
        {"num_params": 30, "num_observations": 12, "rows_per_step": 3, "penalty": 1e-3},
    ],
)
def test_scipy_and_scikit_learn_find_the_same_logistic_minimum(settings: dict[str, Any]) -> None:
    from sklearn.linear_model import LogisticRegression as Solver

    batch = logistic(8, **settings)
    whole = dataclasses.replace(batch, rows_per_step=batch.signed_design.shape[1])
    for index in range(8):
        problem = whole.select(torch.tensor([index]))

        def function(params: np.ndarray, problem: TaskBatch = problem) -> Any:
            loss, grad = problem.observe(torch.from_numpy(params)[None], 0)
            return loss.item(), grad[0].numpy()

        found = scipy.optimize.minimize(
            function, problem.start[0].numpy(), jac=True, method="BFGS", options={"gtol": 1e-7}
        )
        assert_close(found.fun, problem.least.item(), rtol=1e-8, atol=1e-12)
        # A sign of its own for every other row, as the solver wants both classes.
        signs = np.resize([1.0, -1.0], problem.signed_design.shape[1])
        design = signs[:, None] * problem.signed_design[0].numpy()
        weight = 1 / (batch.penalty * len(signs))
        solver = Solver(C=weight, fit_intercept=False, solver="newton-cholesky", tol=1e-10)
        solution = torch.from_numpy(solver.fit(design, signs).coef_)
        assert_close(problem.best, solution, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_observations": 200, "rows_per_step": 200},
        # Full steps overshoot here.
        {"num_params": 2, "num_observations": 20, "rows_per_step": 20, "penalty": 1e-6},
    ],
)
def test_newton_ends_where_the_gradient_does(settings: dict[str, Any]) -> None:
    batch = logistic(500, spread=3.0, **settings)
    start, end = (
        batch.evaluate(params, 0).grad.norm(dim=1) for params in (batch.start, batch.best)
    )
    assert (end <= 2e-12 * start).all()


def test_logistic_labels_follow_the_model() -> None:
    family = LogisticRegression(num_params=1, num_observations=400, spread=0.0, alpha=1 / 9)
    batch = family.sample(500, seeded(), dtype=DOUBLE)
    assert isinstance(batch, LogisticRegressionBatch)
    _, truth, _, _ = family._regression().draw(500, seeded())
    assert_law(truth, scipy.stats.norm(0, 3))
    margin = batch.signed_design[..., 0] * truth  # y x theta*: its sign says if the label is likely
    for low in range(4):
        inside = margin[(margin.abs() >= low) & (margin.abs() < low + 1)]
        likely = torch.sigmoid(inside.abs())
        deviation = (inside > 0).double().sum() - likely.sum()
        assert deviation.abs() <= 4 * (likely * (1 - likely)).sum().sqrt()


# --- Matrix factorization ------------------------------------------------------------------------


def factorization(num_problems: int, **settings: Any) -> MatrixFactorizationBatch:
    batch = DigitFactorization(**settings).sample(num_problems, seeded(), dtype=DOUBLE)
    assert isinstance(batch, MatrixFactorizationBatch)
    return batch


def squared_error(batch: MatrixFactorizationBatch, params: Tensor) -> Tensor:
    left, right = params.chunk(2, 1)  # square matrices: equal halves
    size, rank = batch.matrix.shape[1], params.shape[1] // (2 * batch.matrix.shape[1])
    product = left.reshape(-1, size, rank) @ right.reshape(-1, size, rank).mT
    return 0.5 * (batch.matrix - product).square().sum((1, 2))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_factorization_loss_is_half_the_squared_error(rank: int) -> None:
    batch = factorization(B, rank=rank)
    params = randn(B, 16 * rank)
    seen = batch.evaluate(params, 0)
    assert_close(seen.loss, squared_error(batch, params), rtol=1e-12, atol=0)


def test_factorization_takes_matrices_that_are_not_square() -> None:
    matrix, left, right = randn(3, 5, 4), randn(3, 5, 2, seed=2), randn(3, 4, 2, seed=3)
    zeros = torch.zeros(3, dtype=DOUBLE)
    params = torch.cat([left.flatten(1), right.flatten(1)], 1)
    batch = MatrixFactorizationBatch(params, matrix, zeros, zeros.long(), entries_per_step=20)
    expected = 0.5 * (matrix - left @ right.mT).square().sum((1, 2))
    assert_close(batch.observe(params, 0).loss, expected, rtol=1e-12, atol=0)
    best = [0.5 * np.square(np.linalg.svd(one)[1][2:]).sum() for one in matrix.numpy()]
    assert_close(batch.observe(batch.minimizer, 0).loss, torch.tensor(best), rtol=1e-12, atol=0)


def test_factorization_minibatches_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = randn(B, 2, 3)
    start, zeros = randn(B, 5, seed=2), torch.zeros(B, dtype=DOUBLE)
    batch = MatrixFactorizationBatch(start, matrix, zeros, zeros.long(), entries_per_step=2)
    num_subsets = every_subset(6, 2, monkeypatch)

    def loss(params: Tensor) -> Tensor:
        product = params[:, :2, None] * params[:, None, 2:]
        return 0.5 * (matrix - product).square().sum((1, 2))

    assert_unbiased(batch, loss, num_subsets)


def test_factorization_is_scored_by_all_entries() -> None:
    batch = factorization(B, entries_per_step=16)
    params = randn(B, 32)
    seen = batch.evaluate(params, 4)
    expected = squared_error(batch, params) - batch.least
    assert_close(seen.excess, expected, rtol=1e-12, atol=0)


def test_scipy_finds_no_lower_factorization() -> None:
    batch = factorization(12)
    gaps = []
    for index in range(12):
        problem = batch.select(torch.tensor([index]))

        def function(params: np.ndarray, problem: TaskBatch = problem) -> Any:
            loss, grad = problem.observe(torch.from_numpy(params)[None], 0)
            return loss.item(), grad[0].numpy()

        start = problem.start[0].numpy()
        found = scipy.optimize.minimize(function, start, jac=True, tol=1e-9, method="L-BFGS-B")
        gaps.append(found.fun - problem.least.item())
    assert np.abs(gaps).max() < 1e-6


def test_factorized_images_are_those_of_the_table() -> None:
    from sklearn.datasets import load_digits

    batch = factorization(300, start_std=0.3)
    table = {image.tobytes() for image in load_digits().images}
    assert {(16 * image).numpy().tobytes() for image in batch.matrix} <= table
    assert len(batch.matrix.unique(dim=0)) > 250
    assert_law(batch.start, scipy.stats.norm(0, 0.3))


# --- Networks ------------------------------------------------------------------------------------


def sample_images(family: TaskFamily) -> ModuleBatch:
    batch = family.sample(B, seeded(), dtype=DOUBLE)
    assert isinstance(batch, ModuleBatch)
    return batch


def test_the_mnist_network_is_that_of_l2l() -> None:
    batch = sample_images(tasks.family("mnist-mlp"))
    assert_law(batch.start, scipy.stats.norm(0, 0.01))
    params = 0.3 * randn(B, 784 * 20 + 20 + 20 * 10 + 10)
    inputs, targets = batch.minibatch(3)
    assert inputs.shape == (B, 128, 28, 28)
    assert inputs.max() == 1  # pixels / 255
    first, bias, second, other = params.split([784 * 20, 20, 200, 10], 1)
    hidden = inputs.flatten(2) @ first.view(B, 20, 784).mT + bias.unsqueeze(1)
    logits = torch.sigmoid(hidden) @ second.view(B, 10, 20).mT + other.unsqueeze(1)
    expected = -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean((1, 2))
    assert_close(batch.evaluate(params, 3).loss, expected, rtol=1e-12, atol=0)


def test_the_cifar_network_is_that_of_l2l() -> None:
    family = dataclasses.replace(CifarConvolutional(), batch_size=6)
    assert family.group_sizes == (3 * 16 * 25 + 2 * 16 * 16 * 25, 3 * 32 + 257 * 32 + 32 + 330)
    batch = sample_images(family)
    views = batch.task.views(batch.start)
    assert list(views)[:3] == [f"convolution{number}.weight" for number in range(3)]
    assert all((views[f"normalisation{number}.bias"] == 0).all() for number in range(4))
    assert_law(batch.start[:, :14000], scipy.stats.norm(0, 0.01))

    inputs, targets = batch.minibatch(0)
    params = batch.start + 0.1 * randn(B, batch.dim)
    for problem, loss in enumerate(batch.evaluate(params, 0).loss):
        own = {name: view[problem] for name, view in batch.task.views(params).items()}
        hidden = inputs[problem]

        def normalised(value: Tensor, offset: Tensor) -> Tensor:
            axes = [0, *range(2, value.dim())]
            mean = value.mean(axes, keepdim=True)
            scale = (value.var(axes, correction=0, keepdim=True) + 1e-3).sqrt()
            return (value - mean) / scale + offset.view(-1, *[1] * (value.dim() - 2))

        for layer in range(3):
            name = f"convolution{layer}"
            hidden = torch.conv2d(hidden, own[f"{name}.weight"], own[f"{name}.bias"], padding=2)
            hidden = normalised(hidden, own[f"normalisation{layer}.bias"]).relu()
            hidden = torch.max_pool2d(hidden, 2)
        hidden = hidden.flatten(1) @ own["hidden.weight"].mT + own["hidden.bias"]
        hidden = normalised(hidden, own["normalisation3.bias"]).relu()
        logits = hidden @ own["output.weight"].mT + own["output.bias"]
        assert_close(loss, torch.nn.functional.cross_entropy(logits, targets[problem]))


def test_classes_left_out_are_neither_trained_on_nor_tested() -> None:
    family = dataclasses.replace(CifarConvolutional(labels="72"), batch_size=64)
    task = sample_images(family).task
    whole = sample_images(CifarConvolutional()).task
    assert task.test is not None
    assert (len(task.train), len(task.test)) == (40, 8)
    inputs, targets = task.train.take(torch.arange(40), DOUBLE)
    everything, labels = whole.train.take(torch.arange(200), DOUBLE)
    assert torch.equal(inputs, everything[(labels == 7) | (labels == 2)])
    assert torch.equal(targets, (labels[(labels == 7) | (labels == 2)] == 2).long())


def test_problems_may_be_given_their_share_of_the_images() -> None:
    parts = [
        sample_images(Perceptron(first_image=first, num_images=num)).task
        for first, num in ((0, 100), (100, None), (0, None))
    ]
    assert [len(part.train) for part in parts] == [100, 140, 240]
    inputs = [part.train.take(torch.arange(len(part.train)), DOUBLE)[0] for part in parts]
    assert torch.equal(torch.cat(inputs[:2]), inputs[2])
    for first, num in ((0, 241), (200, 41), (240, None)):
        with pytest.raises(InputError, match=r"more than the 240 training images"):
            Perceptron(first_image=first, num_images=num).sample(1, seeded())


def test_other_images_of_the_same_format_may_be_given(tmp_path: Path) -> None:
    white = np.full((3, 28, 28), 255, np.uint8), np.zeros(3, np.uint8)
    write_mnist(tmp_path, white, white, suffix="")
    batch = sample_images(Perceptron(images=str(tmp_path)))
    assert (batch.minibatch(0)[0] == 1).all()
    with pytest.raises(InputError, match=r"holds images of 28 x 28 pixels, expected 8 x 8"):
        Perceptron(images=str(tmp_path), data="digits").sample(1, seeded())


# --- Rosenbrock ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 5])
def test_rosenbrock_is_the_textbook_function(dim: int) -> None:
    params = 2 * randn(4, dim)
    batch = RosenbrockBatch(params, torch.full((4,), 100.0, dtype=DOUBLE))
    seen = batch.evaluate(params, 0)
    assert_close(seen.loss.numpy(), scipy.optimize.rosen(params.T.numpy()), rtol=1e-13, atol=0)
    assert_close(
        seen.grad.T.numpy(), scipy.optimize.rosen_der(params.T.numpy()), rtol=1e-12, atol=0
    )


def test_rosenbrock_steepness_is_log_uniform() -> None:
    batch = Rosenbrock().sample(3000, seeded(), dtype=DOUBLE)
    assert isinstance(batch, RosenbrockBatch)
    assert_law(batch.steepness, scipy.stats.loguniform(1, 100))


# --- Student-t -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robust() -> StudentTBatch:
    family = StudentTRegression(num_params=4, degrees=2.5, noise_scale=0.7)
    batch = family.sample(20, seeded(), dtype=DOUBLE)
    assert isinstance(batch, StudentTBatch)
    return batch


def test_student_t_loss_is_the_negative_log_likelihood(robust: StudentTBatch) -> None:
    params = randn(20, 4)
    mean = (robust.design * params[:, None, :]).sum(-1)
    degrees, scale = (torch.tensor(value, dtype=DOUBLE) for value in (2.5, 0.7))
    noise = torch.distributions.StudentT(degrees, mean, scale)
    expected = -noise.log_prob(robust.observed).sum(1)
    assert_close(robust.evaluate(params, 0).loss, expected, rtol=1e-12, atol=0)


def test_student_t_reference_is_a_minimum_that_scipy_finds(robust: StudentTBatch) -> None:
    def minimum(index: int, start: Tensor) -> float:
        problem = robust.select(torch.tensor([index]))

        def function(params: np.ndarray) -> tuple[float, np.ndarray]:
            loss, grad = problem.observe(torch.from_numpy(params)[None], 0)
            return loss.item(), grad[0].numpy()

        return float(scipy.optimize.minimize(function, start.numpy(), jac=True, tol=1e-9).fun)

    least_squares = torch.linalg.lstsq(robust.design, robust.observed.unsqueeze(-1)).solution
    gaps = torch.tensor(
        [
            [minimum(i, start) - robust.reference[i].item() for start in starts]
            for i, starts in enumerate(zip(least_squares.squeeze(-1), randn(20, 4), strict=True))
        ]
    )
    assert (gaps.abs().amin(1) < 1e-7).float().mean() >= 0.9  # found again, but for rare problems
    assert (gaps < -1e-7).any(1).float().mean() <= 0.1  # beaten in rare problems only


def test_student_t_noise_has_its_degrees_of_freedom() -> None:
    family = StudentTRegression(num_params=1, num_observations=1, num_reference_steps=0, alpha=1e12)
    batch = family.sample(4000, seeded(), dtype=DOUBLE)
    assert isinstance(batch, StudentTBatch)
    assert_law(batch.observed, scipy.stats.t(3.0))


# --- Diabetes ------------------------------------------------------------------------------------


def test_diabetes_is_standardised_and_solved_like_numpy_solves_it() -> None:
    from sklearn.datasets import load_diabetes

    family = Diabetes(min_observations=442, max_observations=442)  # all rows, in random order
    batch = family.sample(2, seeded(), dtype=DOUBLE)
    table, response = load_diabetes(return_X_y=True, scaled=False)
    table, response = scipy.stats.zscore(table), scipy.stats.zscore(response)
    solution, squares, _, _ = np.linalg.lstsq(table, response)
    expected = torch.from_numpy(solution).expand(2, -1)
    assert_close(batch.minimizer, expected, rtol=1e-9, atol=1e-9)
    least = squares[0] / 2 + 442 / 2 * math.log(2 * math.pi)
    assert_close(batch.reference_loss, torch.full((2,), least, dtype=DOUBLE), rtol=1e-12, atol=0)


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (LinearRegression, {"num_params": 0}, "num_params"),
        (LinearRegression, {"min_observations": 0}, "min_observations"),
        (LinearRegression, {"max_observations": 9}, "10 and 9"),
        (LinearRegression, {"alpha": 0.0}, "alpha"),
        (LinearRegression, {"beta": -1.0}, "beta"),
        (LinearRegression, {"beta": math.nan}, "beta"),
        (LinearRegression, {"spread": -0.1}, "spread"),
        (LinearRegression, {"condition_decades": -1.0}, "condition_decades"),
        (LinearRegression, {"signal_decades": -1.0}, "signal_decades"),
        (LinearRegression, {"spectral_norm": 0.0}, "spectral_norm"),
        (LinearRegression, {"inputs": "gaussian"}, "inputs"),
        (LogisticRegression, {"num_params": 0}, "num_params"),
        (LogisticRegression, {"rows_per_step": 0}, "rows_per_step"),
        (LogisticRegression, {"rows_per_step": 201}, "num_observations = 200, got 201"),
        (LogisticRegression, {"penalty": 0.0}, "penalty"),
        (DigitFactorization, {"rank": 0}, "rank"),
        (DigitFactorization, {"rank": 9}, "rank"),
        (DigitFactorization, {"entries_per_step": 65}, "entries_per_step"),
        (DigitFactorization, {"start_std": 0.0}, "start_std"),
        (MinibatchRegression, {"num_params": 0}, "num_params"),
        (MinibatchRegression, {"rows_per_step": 0}, "rows_per_step"),
        (MinibatchRegression, {"rows_per_step": 11}, "num_observations = 10, got 11"),
        (MinibatchRegression, {"beta": 0.0}, "beta"),
        (Quadratic, {"num_params": 0}, "num_params"),
        (Quadratic, {"start_std": -1.0}, "start_std"),
        (Rosenbrock, {"num_params": 1}, "num_params"),
        (Rosenbrock, {"min_steepness": 0.0}, "steepness"),
        (Rosenbrock, {"max_steepness": 0.5}, "steepness"),
        (Rosenbrock, {"start_std": -1.0}, "start_std"),
        (StudentTRegression, {"degrees": 0.0}, "degrees"),
        (StudentTRegression, {"noise_scale": 0.0}, "noise_scale"),
        (StudentTRegression, {"num_observations": 9}, "num_observations"),
        (StudentTRegression, {"spread": -0.1}, "spread"),
        (StudentTRegression, {"alpha": 0.0}, "alpha"),
        (Perceptron, {"num_hidden": 0}, "num_hidden"),
        (Perceptron, {"num_layers": 0}, "num_layers"),
        (Perceptron, {"activation": "tanh"}, "activation"),
        (Perceptron, {"data": "svhn"}, "data must be"),
        (Perceptron, {"batch_size": 0}, "batch_size"),
        (Perceptron, {"num_score": 0}, "num_score"),
        (Perceptron, {"num_images": 0}, "num_images"),
        (Perceptron, {"first_image": -1}, "first_image"),
        (Perceptron, {"init_std": -1.0}, "init_std"),
        (CifarConvolutional, {"labels": "0"}, "labels"),
        (CifarConvolutional, {"labels": "00"}, "labels"),
        (CifarConvolutional, {"labels": "0a"}, "labels"),
        (Diabetes, {"max_observations": 443}, "442"),
        (Diabetes, {"beta": 0.0}, "beta"),
    ],
)
def test_bad_settings_are_refused_at_once(
    family: type[TaskFamily], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        family(**settings)
