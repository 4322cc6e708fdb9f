"""Bounds by free coordinates: a bijection with the slope that it says, whatever the numbers."""

import math
from typing import Any

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError
from haltwise.engines.base import Point, Proposal, within
from haltwise.tasks.bounds import OpenInterval

DOUBLE = torch.float64
ENDS = [(0.0, math.inf), (-3.0, math.inf), (-math.inf, 2.0), (0.0, 1.0), (-5.0, 1e3)]
some_bounds = st.sampled_from(ENDS).map(lambda ends: OpenInterval(*ends))
free_values = st.floats(-30, 30)


@given(bounds=some_bounds, value=free_values)
def test_free_coordinates_and_parameters_are_inverse(bounds: OpenInterval, value: float) -> None:
    free = torch.tensor([value], dtype=DOUBLE)
    own = bounds.own(free)
    assert bounds.low <= own.item() <= bounds.high
    if bounds.holds(own):
        back = bounds.free(own)
        rounding = 4e-16 * own.abs().clamp_min(1).item() / bounds.slope(free).item()
        assert abs(back.item() - value) <= 1e-12 + 4 * rounding


@pytest.mark.parametrize("width", [1.0, 1e3, 1e6, 1e30])
@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_a_wide_interval_keeps_the_digits_of_single_precision(width: float, method: str) -> None:
    own = width * torch.tensor([[0.3, -0.9, 3e-7, -3e-5, 0.0]])
    bounds = haltwise.interval(-width, width)
    torch.testing.assert_close(bounds.own(bounds.free(own)), own, rtol=1e-5, atol=0)
    target = torch.tensor([[0.1, -0.2, 0.25]])
    problem = FunctionBatch(
        torch.full((1, 3), 0.3),
        lambda p: (p - target).square().sum(1),
        bounds=haltwise.interval(-1e6, 1e6),
    )
    torch.testing.assert_close(problem.own(problem.start), torch.full((1, 3), 0.3))
    found = haltwise.solve(problem, method=method, gtol=0, ftol=1e-12, max_steps=1000)
    torch.testing.assert_close(found.params, target, rtol=1e-3, atol=0)


def test_an_interval_wider_than_numbers_are_is_refused() -> None:
    with pytest.raises(InputError, match="too wide to be computed in; leave a parameter without"):
        haltwise.interval(-1e308, 1e308)


@given(bounds=some_bounds, value=free_values)
def test_the_slope_is_the_derivative(bounds: OpenInterval, value: float) -> None:
    free = torch.tensor([value], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(bounds.own(free), free)
    torch.testing.assert_close(bounds.slope(free.detach()), slope, rtol=1e-9, atol=0)
    assert slope > 0


@given(bounds=some_bounds, value=free_values)
def test_the_bend_is_the_derivative_of_the_slope(bounds: OpenInterval, value: float) -> None:
    free = torch.tensor([value], dtype=DOUBLE, requires_grad=True)
    (bend,) = torch.autograd.grad(bounds.slope(free), free)
    torch.testing.assert_close(bounds.bend(free.detach()), bend, rtol=1e-6, atol=1e-12)


@given(
    dim=st.integers(1, 6),
    columns=st.dictionaries(st.integers(0, 5), some_bounds, max_size=6),
    seed=st.integers(0, 99),
)
def test_columns_with_bounds_are_the_loss_of_their_own_parameters(
    dim: int, columns: dict[int, OpenInterval], seed: int
) -> None:
    columns = {column: bounds for column, bounds in columns.items() if column < dim}
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(4, dim, generator=generator, dtype=DOUBLE)
    own = free.clone()
    for column, bounds in columns.items():
        own[:, column] = bounds.own(free[:, column])
    problem = FunctionBatch(own, lambda params: params.cos().sum(1), bounds=columns)
    torch.testing.assert_close(problem.start, free, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(problem.own(problem.start), own)
    seen = problem.observe(problem.start, 0)
    torch.testing.assert_close(seen.loss, own.cos().sum(1))
    slope = torch.ones_like(free)
    for column, bounds in columns.items():
        slope[:, column] = bounds.slope(free[:, column])
    torch.testing.assert_close(seen.grad, -own.sin() * slope, rtol=1e-7, atol=1e-9)


def named(params: dict[str, Tensor], weight: Tensor) -> Tensor:
    total = params["effect"].flatten(1).square().sum(1) + (params["rate"] - 2).square()
    return total * weight


@given(number=st.integers(1, 5), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_named_parameters_are_the_flat_ones(number: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(7)
    effect = torch.randn(number, rows, columns, generator=generator, dtype=DOUBLE)
    rate = torch.rand(number, generator=generator, dtype=DOUBLE) + 0.1
    weight = torch.rand(number, generator=generator, dtype=DOUBLE)
    start = {"effect": effect, "rate": rate}
    problem = FunctionBatch(start, named, {"weight": weight}, bounds={"rate": haltwise.positive()})
    assert problem.start.shape == (number, rows * columns + 1)
    own = problem.own(problem.start)
    assert list(own) == ["effect", "rate"]
    for name, value in start.items():
        torch.testing.assert_close(own[name], value)
    flat = torch.column_stack((2 * effect.flatten(1), 2 * (rate - 2) * rate)) * weight[:, None]
    torch.testing.assert_close(problem.observe(problem.start, 0).grad, flat)
    last = problem.select(torch.tensor([number - 1]))
    torch.testing.assert_close(last.own(last.start)["effect"], effect[-1:])


ONES = torch.ones(3, 2, dtype=DOUBLE)
POSITIVE = haltwise.positive()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": -ONES, "bounds": POSITIVE}, r"inside \(0, inf\), but is -1 in problem 0; start"),
        ({"start": ONES, "bounds": haltwise.interval(-1, 1)}, r"inside \(-1, 1\), but is 1 in"),
        ({"start": ONES * torch.nan, "bounds": POSITIVE}, "but is nan in problem 0"),
        (
            {"start": {"a": ONES, "b": 0 * ONES}, "bounds": {"b": POSITIVE}},
            r"\['b'\] must lie",
        ),
        ({"start": {"a": ONES}, "bounds": {"b": POSITIVE}}, "bounds name 'b', but .* are 'a'"),
        ({"start": {"a": ONES}, "bounds": [POSITIVE, None]}, "must be a dictionary by name"),
        ({"start": {"a": ONES}, "bounds": {"a": (0, 1)}}, r"bounds\['a'\] must be haltwise.pos"),
        ({"start": ONES, "bounds": {2: POSITIVE}}, "column 2, but the parameters have columns 0"),
        ({"start": ONES, "bounds": {"a": POSITIVE}}, "column 'a', but"),
        ({"start": ONES, "bounds": [POSITIVE]}, "one or None for each of 2 columns, got"),
        ({"start": ONES, "bounds": [POSITIVE, 1.0]}, r"bounds\[1\] must be haltwise.pos"),
        ({"start": ONES, "bounds": 3}, "bounds must be haltwise.positive"),
        ({"start": ONES[0], "bounds": POSITIVE}, r"of shape \[B, D\] or .* got shape \[2\]"),
        ({"start": ONES.long(), "bounds": POSITIVE}, "start must be float32 or float64, got torch"),
        ({"start": {}}, "empty dictionary"),
        ({"start": {0: ONES}}, r"named by text, got \[0\]"),
        ({"start": {"a": 1.0}}, r"start\['a'\] must be a tensor of shape \[B, ...\].* got 1.0"),
        ({"start": {"a": torch.tensor(1.0)}}, r"a row for each problem, got shape \[\]"),
        ({"start": {"a": ONES, "b": ONES.numpy()}}, "mixes NumPy arrays and tensors"),
        ({"start": {"a": ONES, "b": ONES[:2]}}, "differ in problems: 3 and 2"),
        ({"start": {"a": ONES, "b": ONES.float()}}, "differ in dtype: torch.float64 and torch.f"),
        ({"start": {"a": ONES.half()}}, r"start\['a'\] must be float32 or float64, got torch.fl"),
    ],
)
def test_starts_and_bounds_that_will_not_do(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FunctionBatch(loss=lambda params: params.sum(1), **given)


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (-math.inf, math.inf), (math.nan, 1), ("0", 1)])
def test_intervals_that_are_none(ends: tuple[Any, Any]) -> None:
    with pytest.raises(InputError):
        haltwise.interval(*ends)


def waits(params: Any, x: Tensor, y: Tensor) -> Tensor:
    """Residuals of saturating curves, of parameters by name."""
    top, rate, tilt = params["top"].unsqueeze(1), params["rate"], params["tilt"].unsqueeze(1)
    curve: Tensor = top * (1 - torch.exp(-rate[:, :1] * x)) + rate[:, 1:] * tilt * x
    return y - curve


def curves(**given: Any) -> FunctionBatch:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 4, 9, generator=generator, dtype=DOUBLE)
    start = {
        "top": 0.5 + torch.rand(4, generator=generator, dtype=DOUBLE),
        "rate": 0.2 + 0.6 * torch.rand(4, 2, generator=generator, dtype=DOUBLE),
        "tilt": torch.randn(4, generator=generator, dtype=DOUBLE),
    }
    bounds = {"top": haltwise.positive(), "rate": haltwise.interval(0, 1)}
    return FunctionBatch(start, data={"x": x, "y": y}, bounds=bounds, **given)


def flat(params: Any) -> Tensor:
    return torch.cat([value.reshape(len(value), -1) for value in params.values()], 1)


def unflat(values: Tensor) -> dict[str, Tensor]:
    return {"top": values[..., 0], "rate": values[..., 1:3], "tilt": values[..., 3]}


def own_derivatives(params: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and Hessian in the named parameters themselves, flattened in their order."""

    def loss(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        one = {name: value.unsqueeze(0) for name, value in unflat(values).items()}
        return waits(one, x.unsqueeze(0), y.unsqueeze(0)).square().sum() / 2

    gradient = torch.func.grad(loss)
    each = [
        torch.vmap(function)(flat(params), x, y)
        for function in (loss, gradient, torch.func.jacrev(gradient))
    ]
    return each[0], each[1], each[2]


def own_jacobian(params: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    def residuals(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        one = {name: value.unsqueeze(0) for name, value in unflat(values).items()}
        return waits(one, x.unsqueeze(0), y.unsqueeze(0)).squeeze(0)

    return waits(params, x, y), torch.vmap(torch.func.jacrev(residuals))(flat(params), x, y)


def test_derivatives_of_named_and_bounded_parameters_are_those_in_their_coordinates() -> None:
    automatic = curves(residuals=waits)
    found = curves(derivatives=own_derivatives).observe_curvature(automatic.start)
    for own, expected in zip(found, automatic.observe_curvature(automatic.start), strict=True):
        torch.testing.assert_close(own, expected)
    both = curves(residuals=waits, derivatives=own_jacobian)
    for own, expected in zip(
        both.observe_residuals(automatic.start),
        automatic.observe_residuals(automatic.start),
        strict=True,
    ):
        torch.testing.assert_close(own, expected)


def test_problems_with_such_derivatives_have_the_same_solutions() -> None:
    expected = haltwise.solve(curves(residuals=waits), method="gauss-newton", max_steps=500)
    for method, batch in (
        ("gauss-newton", curves(residuals=waits, derivatives=own_jacobian)),
        ("newton", curves(derivatives=own_derivatives)),
    ):
        solution = haltwise.solve(batch, method=method, gtol=1e-8, max_steps=500)
        torch.testing.assert_close(solution.loss, expected.loss, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["gauss-newton", "newton", "bfgs"])
def test_linear_least_squares_within_bounds_are_scipy_s(method: str) -> None:
    """Of which some parameters lie at their bounds, and hold up none of the others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 5, 50, dtype=DOUBLE).expand(40, 50)
    design = torch.stack((torch.ones_like(x), x, x.square()), 2)
    truth = torch.tensor([3.0, 1.0, 0.1]) * torch.randn(40, 3, generator=generator, dtype=DOUBLE)
    noise = 0.05 * torch.randn(40, 50, generator=generator, dtype=DOUBLE)
    data = {"design": design, "y": (design @ truth.unsqueeze(2)).squeeze(2) + noise}

    def misses(params: Tensor, design: Tensor, y: Tensor) -> Tensor:
        return (params.unsqueeze(1) @ design.mT).squeeze(1) - y

    given: Any = {"residuals": misses}
    if method != "gauss-newton":
        given = {"loss": lambda *args, **kwargs: misses(*args, **kwargs).square().sum(1) / 2}
    start = torch.full((40, 3), 0.5, dtype=DOUBLE)
    problem = FunctionBatch(start, data=data, bounds=haltwise.positive(), **given)
    found = haltwise.solve(problem, method=method)
    assert found.success.all()
    for index in range(40):
        own = data["design"][index].numpy(), data["y"][index].numpy()
        due = scipy.optimize.nnls(*own)[1] ** 2 / 2
        assert found.loss[index] <= due * (1 + 1e-3) + 1e-3


@given(seed=st.integers(0, 99))
def test_a_shortened_step_is_forecast_by_the_same_parabola(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grad, move = torch.randn(2, 5, 3, generator=generator, dtype=DOUBLE)
    root = torch.randn(5, 3, 3, generator=generator, dtype=DOUBLE)
    curvature = root @ root.mT
    slope = (grad * move).sum(1)

    def fall(step: Tensor) -> Tensor:
        bend = (step.unsqueeze(1) @ curvature @ step.unsqueeze(2)).flatten()
        found: Tensor = -(grad * step).sum(1) - bend / 2
        return found

    reach = torch.tensor([0.5, math.inf, 1.0], dtype=DOUBLE)
    whole = Proposal(move, slope, fall(move), torch.ones(5, dtype=torch.bool))
    found = within(reach, Point(torch.zeros_like(grad), slope, grad), whole)
    assert (found.move.abs() <= reach * (1 + 1e-12)).all()
    is_whole = (move.abs() <= reach).all(1)
    assert torch.equal(found.is_known, is_whole)
    assert torch.equal(found.move[is_whole], move[is_whole])
    torch.testing.assert_close(found.gain, fall(found.move))
    torch.testing.assert_close(found.slope, (grad * found.move).sum(1))
    share = found.move / move
    torch.testing.assert_close(share, share[:, :1].expand_as(share))  # the direction is the same


@pytest.mark.parametrize("method", ["bfgs", "gauss-newton", "newton", "lbfgs", "auto"])
@pytest.mark.parametrize("bounds", [haltwise.positive(), {"k": haltwise.interval(0, 50)}])
def test_a_poor_start_leads_to_no_plateau(method: str, bounds: Any) -> None:
    """By steps of any length a third of these fits end where the decay is over at once."""
    generator = torch.Generator().manual_seed(0)
    time = torch.linspace(0, 5, 30, dtype=DOUBLE)

    def decay(params: dict[str, Tensor]) -> Tensor:
        size, rate, rest = (params[name].unsqueeze(1) for name in ("a", "k", "c"))
        return size * torch.exp(-rate * time) + rest

    draw = torch.rand(3, 60, generator=generator, dtype=DOUBLE)
    size, rate, rest = 0.5 + 4.5 * draw[0], 0.2 + 2.8 * draw[1], 0.05 + draw[2]
    seen = decay({"a": size, "k": rate, "c": rest})
    problem = FunctionBatch(
        {name: torch.full((60,), 0.1, dtype=DOUBLE) for name in "akc"},
        residuals=lambda params, seen: decay(params) - seen,
        data={"seen": seen},
        bounds=bounds,
    )
    solution = haltwise.solve(problem, method=method, gtol=1e-9)
    assert solution.loss.max() < 1e-9
    assert solution.success.all()
