"""Engines where fits are hard: plateaus, curved valleys, units of the loss and the parameters."""

from typing import Any

import pytest
import scipy.optimize
import torch
from draws import DOUBLE, seeded
from growths import growths
from torch import Tensor

import haltwise
from haltwise import FunctionBatch
from haltwise.engines.curvature import newton_direction


def test_few_fits_of_growths_end_on_a_plateau() -> None:
    """A third of them ended where the growth is over, as a success."""
    problem = growths(1.0)
    found, num_worse = haltwise.solve(problem, method="gauss-newton"), 0
    for index in range(40):
        one = problem.select(torch.tensor([index]))

        def residuals(params: Any, one: FunctionBatch = one) -> Any:
            return one.residuals(torch.from_numpy(params)[None], **one.data)[0].numpy()  # type: ignore[misc]

        known = scipy.optimize.least_squares(residuals, one.start[0].numpy())
        num_worse += bool(found.loss[index] > known.cost * (1 + 1e-6))
    assert num_worse <= 1


def test_a_fit_along_a_curved_valley_ends_at_scipy_s_minimum() -> None:
    """Damping that began anew at each step that failed was a thousand times too strong."""
    heat = torch.linspace(280, 360, 12, dtype=DOUBLE)

    def rates(params: Tensor) -> Tensor:
        often, energy = params.T.unsqueeze(-1)
        rate: Tensor = often * torch.exp(-energy / (8.314 * heat))
        return rate

    noise = 2 * torch.randn(2, 12, generator=seeded(0), dtype=DOUBLE)
    y = rates(torch.tensor([[1.2e13, 7.5e4]], dtype=DOUBLE)) + noise
    start = torch.tensor([1e12, 6e4], dtype=DOUBLE).repeat(2, 1)
    problem = FunctionBatch(start, residuals=lambda params, y: rates(params) - y, data={"y": y})
    found = haltwise.solve(problem, method="gauss-newton")
    assert found.success.all()
    for index in range(2):

        def residuals(params: Any, index: int = index) -> Any:
            return (rates(torch.from_numpy(params)[None])[0] - y[index]).numpy()

        known = scipy.optimize.least_squares(residuals, start[0].numpy(), x_scale="jac")
        assert found.loss[index] <= known.cost * (1 + 1e-6)


def test_a_plateau_that_is_the_lowest_point_is_returned_and_no_success() -> None:
    problem = growths(1e6).to(torch.float32)
    found = haltwise.solve(problem, method="gauss-newton", history=True)
    on_plateau = torch.tensor(["plateau" in found.why(index) for index in range(40)])
    assert on_plateau.any()
    assert not found.success[on_plateau].any()
    assert found.history is not None
    history = found.history[on_plateau].nan_to_num(torch.inf)
    assert torch.equal(found.loss[on_plateau], history.amin(1))
    assert torch.equal(found.steps[on_plateau], history.argmin(1))


# ------------------------------------------------------------------------- derivatives and choice


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_what_is_definite_is_told_from_rounding_in_any_units(dtype: torch.dtype) -> None:
    columns = torch.randn(500, 12, 4, generator=seeded(5), dtype=dtype)
    grad = torch.randn(500, 4, generator=seeded(6), dtype=dtype)
    units = 2.0 ** torch.tensor([-10.0, 3.0, 10.0, 0.0], dtype=dtype)
    one = torch.ones_like(grad)
    plain, known = newton_direction(columns.mT @ columns, grad, one)
    scaled = columns * units
    found, told = newton_direction(scaled.mT @ scaled, grad * units, one / units)
    assert known.all()
    assert told.all()
    torch.testing.assert_close(found * units, plain)
    columns[..., -1] = columns[..., :-1].sum(-1)  # of no rank more
    assert not newton_direction(columns.mT @ columns, grad, one)[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("method", ["newton", "bfgs", "lbfgs"])
def test_the_unit_of_the_loss_changes_no_path(method: str, dtype: torch.dtype) -> None:
    def valley(params: Tensor) -> Tensor:
        x, y = params.unbind(1)
        return 100 * (y - x * x).square() + (1 - x).square()

    start = torch.tensor([[-1.2, 1.0], [2.0, 2.0]], dtype=dtype)
    for unit in (2.0**30, 2.0**-30):
        one, other = (
            haltwise.solve(FunctionBatch(start, loss), method=method, gtol=gtol)
            for loss, gtol in ((valley, 1e-2), (lambda p, c=unit: c * valley(p), 1e-2 * unit))
        )
        assert one.success.all()
        assert other.success.all()
        torch.testing.assert_close(other.params, one.params, atol=0.02, rtol=0)
        # Eigenvectors are rounded otherwise in other units, and valleys are long.
        assert (other.num_gradients <= 1.2 * one.num_gradients).all()


def test_units_of_the_parameters_do_not_hinder_newton_in_single_precision() -> None:
    scales = 10.0 ** torch.arange(-6, 7, 2)
    start = torch.randn(40, 7, generator=seeded(7))
    problem = FunctionBatch(start, lambda params: (scales * (params - 1).square()).sum(1))
    found = haltwise.solve(problem, method="newton", gtol=0)
    assert found.success.all()
    assert found.num_gradients.max() <= 4
    torch.testing.assert_close(found.params, torch.ones(40, 7), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["newton", "bfgs", "gauss-newton"])
@pytest.mark.parametrize("units", [(1e9, 1.0, 1.0), (1e-9, 1.0, 1.0), (1.0, 1e9, 1.0)])
def test_units_of_the_parameters_hinder_no_fit(method: str, units: tuple[float, ...]) -> None:
    """Amperes in which a current has 1e-9, or a rate of 1e9 a second."""
    draw, unit = seeded(8), torch.tensor(units, dtype=DOUBLE)
    x = 5 * torch.rand(20, 30, generator=draw, dtype=DOUBLE)
    truth = torch.rand(20, 3, generator=draw, dtype=DOUBLE) + torch.tensor([4.0, 0.5, 0.5])
    noise = 0.05 * torch.randn(20, 30, generator=draw, dtype=DOUBLE)

    def decays(params: Tensor, x: Tensor) -> Tensor:
        size, rate, rest = (params / unit).T.unsqueeze(-1)
        fitted: Tensor = size * (-rate * x).exp() + rest
        return fitted

    def residuals(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return decays(params, x) - y

    def loss(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return residuals(params, x, y).square().sum(1) / 2

    data = {"x": x, "y": decays(truth * unit, x) + noise}
    start = torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE).repeat(20, 1) * unit
    given: Any = {"residuals": residuals} if method == "gauss-newton" else {"loss": loss}
    found = haltwise.solve(FunctionBatch(start, data=data, **given), method=method)
    for index in range(20):
        own = {name: value[index, None] for name, value in data.items()}
        known = scipy.optimize.least_squares(
            lambda p, own=own: residuals(torch.from_numpy(p)[None] * unit, **own)[0].numpy(),
            [1.0, 1.0, 0.0],
        )
        assert found.loss[index] < known.cost * (1 + 1e-6)
    assert found.success.all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("method", ["newton", "bfgs"])
def test_units_of_columns_hinder_no_regression(method: str, dtype: torch.dtype) -> None:
    draw = seeded(9)
    x, truth = torch.randn(20, 40, 5, generator=draw), torch.randn(20, 5, 1, generator=draw)
    y = (torch.rand(20, 40, generator=draw) < (x @ truth).squeeze(-1).sigmoid()).to(dtype)
    units, start = 10.0 ** torch.linspace(-9, 9, 5), torch.zeros(20, 5, dtype=dtype)

    def fitted(x: Tensor, ridge: Tensor) -> haltwise.Solution:
        def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            z = (w.unsqueeze(1) @ x.mT).squeeze(1)
            return (torch.nn.functional.softplus(z) - y * z).sum(1) + (ridge * w).square().sum(
                1
            ) / 4

        return haltwise.solve(FunctionBatch(start, loss, {"x": x, "y": y}), method=method)

    one, other = fitted(x.to(dtype), units**0), fitted((x * units).to(dtype), units)
    assert other.success.all()
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_gradients_whose_squares_vanish_are_within_their_tolerance(method: str) -> None:
    problem = FunctionBatch(torch.zeros(2, 2), lambda params: 1e-25 * (params - 3).square().sum(1))
    found = haltwise.solve(problem, method=method)
    assert found.success.all()
    assert found.why(0) == "its gradient is within gtol = 1e-05"


def test_a_linear_loss_falls_without_bound_up_to_where_squares_overflow() -> None:
    found = haltwise.solve(FunctionBatch(torch.zeros(1, 2), lambda params: params.sum(1)))
    assert found.why(0) == "its loss falls without bound"
    assert not found.success.any()


# Of these LAPACK finds no eigenvalues: in single precision, and in double once scaled.
SINGLE = [[0, -1e-7, -1e-9, -1e29], [0, 1e-10, -10, 0], [0] * 4, [0, 0, 0, 1e8]]
TWICE = [[1e-144, 0, -1e149, 0], [0, 1e-68, -1e-132, 0], [0, 0, 1e-198, 0], [0, 0, 0, 1e-79]]


@pytest.mark.parametrize(
    ("method", "upper", "dtype"),
    [("newton", SINGLE, torch.float32), ("bfgs", SINGLE, torch.float32), ("lbfgs", TWICE, DOUBLE)],
)
@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
def test_a_curvature_without_eigenvalues_disturbs_no_other_problem(
    method: str, upper: list[list[float]], dtype: torch.dtype
) -> None:
    upper_part = torch.tensor(upper, dtype=dtype).triu()
    strange = upper_part + upper_part.triu(1).mT
    matrix = torch.stack((torch.eye(4, dtype=dtype), strange, 3 * torch.eye(4, dtype=dtype)))

    def loss(params: Tensor, matrix: Tensor) -> Tensor:
        return (params.unsqueeze(1) @ matrix @ params.unsqueeze(2)).flatten() / 2 - params.sum(1)

    problem = FunctionBatch(torch.full((3, 4), 0.1, dtype=dtype), loss, {"matrix": matrix})
    some = torch.tensor([0, 2])
    found = haltwise.solve(problem, method=method, max_steps=9, standard_errors=True)
    alone = haltwise.solve(problem.select(some), method=method, max_steps=9, standard_errors=True)
    assert torch.equal(found.params[some], alone.params)
    assert found.standard_errors is not None
    assert alone.standard_errors is not None
    assert torch.equal(found.standard_errors.params[some], alone.standard_errors.params)
    assert found.standard_errors.params[1].isnan().all()
