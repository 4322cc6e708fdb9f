"""Logistic regression against distributions of PyTorch, SciPy and scikit-learn."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from task_oracles import DOUBLE, B, assert_law, assert_unbiased, every_subset, randn, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise.tasks import TaskBatch, logistic_regression
from haltwise.tasks.logistic_regression import LogisticRegression, LogisticRegressionBatch


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
    num_subsets = every_subset(logistic_regression, 6, 2, monkeypatch)
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
