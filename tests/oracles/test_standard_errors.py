"""Standard errors by the curvature are those of closed forms; a reason says where none are."""

from typing import Any

import numpy as np
import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor
from torch.nn.functional import softplus

import haltwise
from haltwise import FunctionBatch, InputError
from haltwise.interfaces.standard_errors import AT_BOUND, FAR, INDEFINITE, NONFINITE, WRONG
from haltwise.interfaces.standard_errors import standard_errors_at as errors_at
from haltwise.tasks import family

NUM, ROWS = 7, 50
POSITIVE = haltwise.positive()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(), dtype=DOUBLE)


def gaussian(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (y - (x @ params.unsqueeze(-1)).squeeze(-1)).square().sum(1) / 2


def logistic(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    z = (x @ params.unsqueeze(-1)).squeeze(-1)
    return (softplus(z) - y * z).sum(1)


def logistic_fits() -> tuple[FunctionBatch, Tensor, Tensor]:
    """Logistic regressions, their maximum by Newton's iteration, and the information there."""
    x = draw(NUM, ROWS, 4)
    y = (x.sum(2) + 2 * draw(NUM, ROWS, 5)[..., -1] > 0).double()
    params = torch.zeros(NUM, 4, dtype=DOUBLE)
    for _ in range(30):
        mean = (x @ params.unsqueeze(-1)).squeeze(-1).sigmoid()
        information = x.mT @ ((mean * (1 - mean)).unsqueeze(-1) * x)
        score = x.mT @ (y - mean).unsqueeze(-1)
        params = params + torch.linalg.solve(information, score).squeeze(-1)
    return FunctionBatch(torch.zeros_like(params), logistic, {"x": x, "y": y}), params, information


def test_least_squares_has_the_errors_of_its_normal_equations() -> None:
    x, y = draw(NUM, ROWS, 3) * torch.tensor([1e-3, 1.0, 1e4]), draw(NUM, ROWS)
    params = torch.linalg.lstsq(x, y.unsqueeze(-1)).solution.squeeze(-1)
    found = errors_at(FunctionBatch(0 * params, gaussian, {"x": x, "y": y}), params)
    covariance = torch.linalg.inv(x.mT @ x)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-7, atol=0)
    torch.testing.assert_close(found.params, covariance.diagonal(dim1=1, dim2=2).sqrt())
    assert (found.reason == -1).all()
    assert (found.distance < 1e-5).all()


def test_logistic_regression_has_the_errors_of_its_information() -> None:
    problem, params, information = logistic_fits()
    found = errors_at(problem, params)
    torch.testing.assert_close(found.covariance, torch.linalg.inv(information))


def test_logistic_regression_has_the_errors_of_statsmodels() -> None:
    api: Any = pytest.importorskip("statsmodels.api")
    problem, params, _ = logistic_fits()
    found = errors_at(problem, params)
    for number in range(NUM):
        x, y = (problem.data[name][number].numpy() for name in ("x", "y"))
        fit = api.Logit(y, x).fit(disp=False, tol=1e-12)
        np.testing.assert_allclose(found.params[number], fit.bse, rtol=1e-6)


def test_bounded_parameters_have_the_errors_of_closed_forms() -> None:
    def loss(params: dict[str, Tensor], waits: Tensor, hits: Tensor) -> Tensor:
        rate, share = params["rate"].unsqueeze(1), params["share"].unsqueeze(1)
        exponential = rate * waits - rate.log()
        return (exponential - hits * share.log() - (1 - hits) * (1 - share).log()).sum(1)

    waits = 3 * draw(NUM, ROWS).abs()
    hits = (draw(NUM, ROWS + 1)[:, 1:] > 0.8).double()
    rate, share = 1 / waits.mean(1), hits.mean(1)
    bounds = {"rate": POSITIVE, "share": haltwise.interval(0, 1)}
    start = {"rate": rate, "share": share}
    problem = FunctionBatch(start, loss, {"waits": waits, "hits": hits}, bounds=bounds)
    found = errors_at(problem, problem.start)
    torch.testing.assert_close(found.params["rate"], rate / ROWS**0.5)
    torch.testing.assert_close(found.params["share"], (share * (1 - share) / ROWS).sqrt())


@pytest.mark.parametrize("method", ["newton", "lbfgs", "lstm"])
def test_errors_that_were_asked_for_come_with_the_solution(method: str) -> None:
    problem, params, information = logistic_fits()
    price = 0.006 if method == "lstm" else 1e-9
    found = haltwise.solve(problem, method=method, price=price, standard_errors=True, chunk_size=3)
    errors = found.standard_errors
    assert errors is not None
    expected = torch.linalg.inv(information).diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(
        errors.params, expected, rtol=0.05 if method == "lstm" else 1e-3, atol=0
    )
    miss = found.params - params
    left = miss.unsqueeze(1) @ information @ miss.unsqueeze(2)
    torch.testing.assert_close(errors.distance, left.flatten().sqrt(), rtol=0.1, atol=1e-3)
    assert haltwise.solve(problem, method=method).standard_errors is None


def test_information_that_is_given_is_taken() -> None:
    def scores(params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = (x @ params.unsqueeze(-1)).squeeze(-1).sigmoid()
        grad = (x.mT @ (mean - y).unsqueeze(-1)).squeeze(-1)
        return logistic(params, x, y), grad, 4 * x.mT @ ((mean * (1 - mean)).unsqueeze(-1) * x)

    problem, params, information = logistic_fits()
    given = FunctionBatch(problem.start, data=problem.data, derivatives=scores)
    found = errors_at(given, params)
    torch.testing.assert_close(found.covariance, torch.linalg.inv(information) / 4)


def test_residuals_have_the_errors_of_their_loss() -> None:
    def residuals(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return y - (x @ params["slope"].unsqueeze(-1)).squeeze(-1)

    x, y = draw(NUM, ROWS, 3), draw(NUM, ROWS)
    start = {"slope": np.zeros((NUM, 3))}
    problem = FunctionBatch(start, residuals=residuals, data={"x": x, "y": y})
    found = haltwise.solve(problem, method="auto", standard_errors=True)
    assert found.standard_errors is not None
    covariance = torch.linalg.inv(x.mT @ x)
    torch.testing.assert_close(torch.as_tensor(found.standard_errors.covariance), covariance)
    np.testing.assert_allclose(
        found.standard_errors.params["slope"], covariance.diagonal(dim1=1, dim2=2).sqrt()
    )


def test_there_are_none_where_there_is_no_minimum() -> None:
    def loss(params: Tensor, weights: Tensor) -> Tensor:
        return (weights * params.square()).sum(1)

    weights = torch.tensor([[1.0, 2.0], [1.0, -1.0], [1.0, 0.0], [1.0, torch.inf], [1.0, 2.0]])
    problem = FunctionBatch(torch.zeros(5, 2, dtype=DOUBLE), loss, {"weights": weights.double()})
    params = torch.tensor([[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 2, dtype=DOUBLE)
    found = errors_at(problem, params)
    assert found.reason.tolist() == [-1, INDEFINITE, INDEFINITE, NONFINITE, FAR]
    torch.testing.assert_close(found.params[0], torch.tensor([0.5**0.5, 0.5], dtype=DOUBLE))
    assert found.params[1:].isnan().all()
    assert found.covariance[1:].isnan().all()
    assert found.distance[-1].item() == pytest.approx(6**0.5)  # |(sqrt 2, sqrt 4)|
    assert "1 with, 4 without" in repr(found)
    assert "not positive definite" in found.why(1)
    assert found.why(0) == "it has them all"


def test_there_are_none_where_data_do_not_determine_the_parameters() -> None:
    x, y = draw(NUM, ROWS, 3), draw(NUM, ROWS)
    x[:, :, 2] = x[:, :, 0] - 3 * x[:, :, 1]  # but for rounding
    params = (torch.linalg.pinv(x) @ y.unsqueeze(-1)).squeeze(-1)
    found = errors_at(FunctionBatch(0 * params, gaussian, {"x": x, "y": y}), params)
    assert (found.reason == INDEFINITE).all()

    def saddle(params: Tensor) -> Tensor:  # each parameter by itself has a minimum
        return params.square().sum(1) + 4 * params.prod(1)

    problem = FunctionBatch(torch.zeros(1, 2, dtype=DOUBLE), saddle)
    assert errors_at(problem, problem.start).reason.tolist() == [INDEFINITE]


def test_a_parameter_at_its_bound_has_none_and_the_others_have_theirs() -> None:
    def loss(params: Tensor) -> Tensor:  # least at -1 in the first, which must be positive
        return 2 * (params[:, 0] + 1) + 50 * (params[:, 1] - 3).square()

    start = torch.tensor([[1e-9, 3.0]], dtype=DOUBLE)
    problem = FunctionBatch(start, loss, bounds={0: POSITIVE})
    found = errors_at(problem, problem.start)
    assert found.reason.tolist() == [AT_BOUND]
    assert found.params[0, 0].isnan()
    assert found.params[0, 1].item() == pytest.approx(0.1)
    assert found.covariance[0].isnan().tolist() == [[True, True], [True, False]]


def test_bounded_parameters_that_only_their_ratio_determines_have_none() -> None:
    def loss(params: Tensor) -> Tensor:
        a, b = params[:, :2].log().unbind(1)
        known = 50 * (params[:, 2] - 3).square()
        return 50 * (a - b).square() + 0.005 * (a + b).square() + known

    start = torch.tensor([[1.0, 1.0, 3.0]], dtype=DOUBLE)
    problem = FunctionBatch(start, loss, bounds={0: POSITIVE, 1: POSITIVE})
    found = errors_at(problem, problem.start)
    assert found.reason.tolist() == [AT_BOUND]
    assert found.params[0].isnan().tolist() == [True, True, False]
    assert found.params[0, 2].item() == pytest.approx(0.1)


def test_a_way_that_leads_far_down_is_no_bound() -> None:
    def loss(params: Tensor) -> Tensor:  # flat where it is, as seen in the logarithm
        return -20 * params[:, 0].log() + params[:, 1].square()

    start = torch.tensor([[1e-2, 0.0]], dtype=DOUBLE)
    problem = FunctionBatch(start, loss, bounds={0: POSITIVE})
    assert errors_at(problem, problem.start).reason.tolist() == [FAR]


def test_single_precision_has_the_errors_of_double() -> None:
    problem, params, _ = logistic_fits()
    data = {name: value.float() for name, value in problem.data.items()}
    single = FunctionBatch(problem.start.float(), logistic, data)
    ours = errors_at(single, params.float())
    assert ours.params.dtype == torch.float32
    expected = errors_at(problem, params).params
    torch.testing.assert_close(ours.params.double(), expected, rtol=1e-4, atol=0)


def once_differentiable() -> Any:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, params: Tensor) -> Tensor:
            ctx.save_for_backward(params)
            return params.square().sum(1)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Any:
            return 2 * ctx.saved_tensors[0] * grad.unsqueeze(1)

    return Once.apply


@pytest.mark.parametrize("loss", [once_differentiable(), lambda params: params.abs().sum(1)])
def test_second_derivatives_that_are_wrong_cost_the_errors_alone(loss: Any) -> None:
    problem = FunctionBatch(torch.ones(2, 3), loss)
    with pytest.warns(haltwise.FitWarning, match="no standard errors: .* differentiate twice"):
        found = haltwise.solve(problem, standard_errors=True)
    errors = found.standard_errors
    assert errors is not None
    assert (errors.reason == WRONG).all()
    for value in (errors.params, errors.covariance, errors.distance):
        assert value.isnan().all()
    assert torch.equal(found.params, haltwise.solve(problem).params)


def test_what_gives_no_second_derivatives_is_refused() -> None:
    with pytest.raises(InputError, match=r"standard errors need .*: \w+ has none"):
        haltwise.solve(family("regression-2d").sample(2, seeded()), standard_errors=True)
    slopes = FunctionBatch(torch.ones(2, 3), derivatives=lambda p: (p.square().sum(1), 2 * p))
    with pytest.raises(InputError, match=r"standard errors need .* give the loss, too"):
        haltwise.solve(slopes, method="lbfgs", standard_errors=True)


def test_solutions_too_far_from_the_minimum_are_counted_in_a_warning() -> None:
    problem, _, _ = logistic_fits()
    with pytest.warns(haltwise.FitWarning, match="7 of 7 problems have no standard errors"):
        found = haltwise.solve(problem, method="newton", max_steps=1, standard_errors=True)
    assert found.standard_errors is not None
    assert (found.standard_errors.reason == FAR).all()


def test_one_that_only_its_neighbours_leave_loose_is_taken_for_known() -> None:
    """Its curvature alone would do, but with the other's freedom it is as good as at its bound."""

    def loss(params: dict[str, Tensor], matrix: Tensor) -> Tensor:
        free = torch.stack((params["x"].log(), params["y"]), 1)
        return (free.unsqueeze(1) @ matrix @ free.unsqueeze(2)).flatten() / 2

    matrix = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]], dtype=DOUBLE)
    start = {"x": torch.ones(1, dtype=DOUBLE), "y": torch.zeros(1, dtype=DOUBLE)}
    batch = FunctionBatch(start, loss, {"matrix": matrix}, bounds={"x": POSITIVE})
    found = errors_at(batch, batch.start)
    assert found.reason.tolist() == [AT_BOUND]
    assert found.params["x"].isnan().all()
    torch.testing.assert_close(found.params["y"], torch.ones(1, dtype=DOUBLE))
