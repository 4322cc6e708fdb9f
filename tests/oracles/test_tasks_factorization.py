"""Matrix factorization against plain products, singular values and SciPy."""

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from task_oracles import DOUBLE, B, assert_law, assert_unbiased, every_subset, randn, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise.tasks import TaskBatch, matrix_factorization
from haltwise.tasks.matrix_factorization import DigitFactorization, MatrixFactorizationBatch


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
    num_subsets = every_subset(matrix_factorization, 6, 2, monkeypatch)

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
