"""Quadratics, Rosenbrock, Student-t, curves and diabetes against SciPy, PyTorch and NumPy."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from task_oracles import DOUBLE, assert_law, randn, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise.tasks.curve_fitting import Curve, CurveFitting, CurveFittingBatch
from haltwise.tasks.diabetes import Diabetes
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.tasks.quadratic import Quadratic
from haltwise.tasks.robust_regression import StudentTBatch, StudentTRegression
from haltwise.tasks.rosenbrock import Rosenbrock, RosenbrockBatch


def test_quadratics_follow_the_code_of_l2l() -> None:
    batch = Quadratic().sample(300, seeded(), dtype=DOUBLE)
    assert isinstance(batch, LeastSquaresBatch)
    assert_law(batch.factor, scipy.stats.uniform())
    assert_law(batch.target, scipy.stats.uniform())
    assert_law(batch.start, scipy.stats.norm(0, 0.01))
    params = randn(300, 10)
    naive = ((batch.factor @ params.unsqueeze(-1)).squeeze(-1) - batch.target).square().sum(1)
    assert_close(batch.evaluate(params, 0).loss, naive, rtol=1e-12, atol=0)


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


def formula(curve: Curve, params: Tensor, at: Tensor) -> Tensor:
    """Curves as books write them, of parameters [B, 3] at [B, N]."""
    level, log_rate, third = params.unsqueeze(2).unbind(1)
    rate = log_rate.exp()
    match curve:
        case "decay":
            return level * torch.exp(-rate * at) + third
        case "growth":
            return level / (1 + torch.exp(-rate * (at - third)))
        case "peak":
            return level * torch.exp(-((rate * (at - third)) ** 2) / 2)


@pytest.mark.parametrize("curve", ["decay", "growth", "peak"])
def test_curves_are_least_squares_of_their_formulas(curve: Curve) -> None:
    batch = CurveFitting(curve=curve).sample(40, seeded(), dtype=DOUBLE)
    assert isinstance(batch, CurveFittingBatch)
    params = (batch.start + 0.3 * randn(40, 3)).requires_grad_()
    residuals = (formula(curve, params, batch.at) - batch.observed) / batch.noise.unsqueeze(1)
    loss = 0.5 * residuals.square().sum(1)
    (grad,) = torch.autograd.grad(loss.sum(), params, retain_graph=True)
    seen = batch.observe(params.detach(), 0)
    assert_close(seen.loss, loss.detach(), rtol=1e-12, atol=0)
    assert_close(seen.grad, grad, rtol=1e-9, atol=1e-9 * grad.abs().max().item())
    given, jacobian = batch.observe_residuals(params.detach())
    assert_close(given, residuals.detach(), rtol=1e-12, atol=1e-12)
    for point in range(batch.at.shape[1]):
        (row,) = torch.autograd.grad(residuals[:, point].sum(), params, retain_graph=True)
        assert_close(jacobian[:, point], row, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("curve", ["decay", "growth", "peak"])
def test_curves_begin_to_be_judged_at_the_minimum_that_scipy_finds(curve: Curve) -> None:
    family = CurveFitting(curve=curve, max_noise=0.05)
    batch = family.sample(60, seeded(), dtype=DOUBLE)
    assert isinstance(batch, CurveFittingBatch)
    above = []
    for row in range(60):
        one = batch.select(torch.tensor([row]))

        def residuals(params: np.ndarray, one: CurveFittingBatch = one) -> np.ndarray:
            return one.observe_residuals(torch.from_numpy(params)[None])[0][0].numpy()

        ends = [
            scipy.optimize.least_squares(residuals, start, method="lm", xtol=1e-12, ftol=1e-12)
            for start in (np.array([1.0, log_rate, 0.5]) for log_rate in (0.5, 1.5, 2.0, 2.5))
        ]
        above.append(one.reference_loss.item() - min(end.cost for end in ends))
    # A few have a second minimum, or none that is finite.
    assert np.quantile(np.abs(above), 0.9) < 1e-6


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
