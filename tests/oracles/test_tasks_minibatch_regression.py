"""Minibatches of regressions, averaged over all subsets, against sums over all rows."""

import dataclasses
from typing import Any

import pytest
import scipy.stats
import torch
from task_oracles import DOUBLE, B, assert_law, assert_unbiased, every_subset, randn, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise.tasks import minibatch_regression
from haltwise.tasks.minibatch_regression import MinibatchRegression, MinibatchRegressionBatch


def minibatch_regression_batch(**settings: Any) -> MinibatchRegressionBatch:
    batch = MinibatchRegression(**settings).sample(B, seeded(), dtype=DOUBLE)
    assert isinstance(batch, MinibatchRegressionBatch)
    return batch


def test_regression_minibatches_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = minibatch_regression_batch(num_params=4, num_observations=6, rows_per_step=2, beta=3.0)
    num_subsets = every_subset(minibatch_regression, 6, 2, monkeypatch)

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
    num_subsets = every_subset(minibatch_regression, 6, 3, monkeypatch)
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
