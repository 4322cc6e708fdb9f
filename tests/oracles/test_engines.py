"""Engines against SciPy, closed forms and slow twins; problems that go wrong disturb nobody."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from draws import DOUBLE, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError, Outcome
from haltwise.engines import Point, Proposal, engines
from haltwise.engines.stops import PriceStop, ToleranceStop
from haltwise.tasks import family
from haltwise.update_rules import SGD, Adam

NUMBER, ROWS, DIM = 1000, 30, 4
SCALES = np.array([1.0, 1e-2, 1e2, 30.0])


def softplus(value: Tensor) -> Tensor:
    return torch.nn.functional.softplus(value)


def logistic(w: Tensor, x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    z = (x @ w.unsqueeze(-1)).squeeze(-1)
    return (softplus(z) - y * z).sum(1) + ridge / 2 * w.square().sum(1)


def logistic_derivatives(w: Tensor, x: Tensor, y: Tensor, ridge: Tensor) -> tuple[Tensor, ...]:
    z = (x @ w.unsqueeze(-1)).squeeze(-1)
    mean = z.sigmoid()
    grad = ((mean - y).unsqueeze(1) @ x).squeeze(1) + ridge.unsqueeze(1) * w
    hessian = x.mT @ ((mean * (1 - mean)).unsqueeze(-1) * x) + torch.diag_embed(
        ridge.unsqueeze(1).expand_as(w)
    )
    return logistic(w, x, y, ridge), grad, hessian


def kinetics(p: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Residuals of Michaelis-Menten rates; logarithms of both constants are the parameters."""
    top, half = p.exp().unsqueeze(-1).unbind(1)
    return top * s / (half + s) - v


class Logistics:
    """1,000 regressions: 5 % of a Hessian's condition around 1e10, 1 % hopeless."""

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        x = draw.standard_normal((NUMBER, ROWS, DIM))
        w = draw.standard_normal((NUMBER, DIM))
        self.ill = np.arange(NUMBER) % 20 == 3
        x[self.ill] *= SCALES
        w[self.ill] /= SCALES
        means = 1 / (1 + np.exp(-np.einsum("knd,kd->kn", x, w)))
        y = (draw.random((NUMBER, ROWS)) < means).astype(float)
        ridge = np.full(NUMBER, 0.1)
        self.hopeless = np.arange(NUMBER) % 100 == 50
        where = np.flatnonzero(self.hopeless)
        x[where[0::3], 3, 2] = np.nan
        y[where[1::3], 0] = np.inf
        ridge[where[2::3]] = -30.0  # unbounded below
        self.unbounded = where[2::3]
        self.arrays = x, y, ridge
        tensors = map(torch.from_numpy, self.arrays)
        self.data = dict(zip(("x", "y", "ridge"), tensors, strict=True))
        self.start = torch.zeros(NUMBER, DIM, dtype=DOUBLE)

    def by_scipy(self) -> np.ndarray[Any, Any]:
        def value(w: Any, x: Any, y: Any, ridge: float) -> Any:
            z = x @ w
            loss = (np.logaddexp(0, z) - y * z).sum() + ridge / 2 * w @ w
            return loss, x.T @ (1 / (1 + np.exp(-z)) - y) + ridge * w

        def hessian(w: Any, x: Any, y: Any, ridge: float) -> Any:
            mean = 1 / (1 + np.exp(-x @ w))
            return x.T @ ((mean * (1 - mean))[:, None] * x) + ridge * np.eye(DIM)

        found = np.full((NUMBER, DIM), np.nan)
        for i in np.flatnonzero(~self.hopeless):
            own = tuple(array[i] for array in self.arrays)
            found[i] = scipy.optimize.minimize(
                value, np.zeros(DIM), own, "trust-exact", True, hessian, options={"gtol": 1e-9}
            ).x
        return found


@pytest.fixture(scope="module")
def logistics() -> Logistics:
    return Logistics()


@pytest.fixture(scope="module")
def logistics_by_scipy(logistics: Logistics) -> Any:
    return logistics.by_scipy()


def relative(found: Any, expected: Any) -> Any:
    return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.mark.parametrize("given", ["loss", "derivatives"])
@pytest.mark.parametrize("method", ["newton", "bfgs", "lbfgs"])
def test_minima_of_a_thousand_regressions_are_scipy_s(
    method: str, given: str, logistics: Logistics, logistics_by_scipy: Any
) -> None:
    functions: dict[str, Any] = {"loss": logistic, "derivatives": logistic_derivatives}
    problem = FunctionBatch(logistics.start, data=logistics.data, **{given: functions[given]})
    solution = haltwise.solve(problem, method=method, gtol=1e-9, max_steps=3000)
    fine = ~logistics.hopeless
    assert relative(solution.params.numpy(), logistics_by_scipy)[fine].max() < 1e-6
    assert solution.success.numpy()[fine].all()
    assert not solution.success.numpy()[logistics.hopeless].any()
    for index in np.flatnonzero(logistics.hopeless).tolist():
        if index in logistics.unbounded:
            assert solution.why(index) == "its loss falls without bound"
        else:
            assert solution.outcome[index] == Outcome.NONFINITE
            assert torch.equal(solution.params[index], logistics.start[index])
            assert solution.why(index) == "its loss or gradient is not finite"


def test_minima_of_a_thousand_sums_of_squares_are_scipy_s() -> None:
    draw = np.random.default_rng(2)
    s = np.exp(draw.uniform(-2, 3, (NUMBER, 12)))
    s[np.arange(NUMBER) % 20 == 3] *= 1e-2  # the curve is all but straight
    top, half = np.exp(draw.normal(0, 0.5, (2, NUMBER, 1)))
    v = top * s / (half + s)
    v *= 1 + 0.02 * draw.standard_normal(v.shape)
    hopeless = np.arange(NUMBER) % 100 == 50
    v[np.flatnonzero(hopeless)[::2], 1] = np.nan
    v[np.flatnonzero(hopeless)[1::2], 0] = np.inf
    data = {"s": torch.from_numpy(s), "v": torch.from_numpy(v)}
    problem = FunctionBatch(torch.zeros(NUMBER, 2, dtype=DOUBLE), residuals=kinetics, data=data)
    solution = haltwise.solve(problem, method="gauss-newton", gtol=1e-11)
    assert not solution.success.numpy()[hopeless].any()
    assert (solution.outcome.numpy()[hopeless] == Outcome.NONFINITE).all()

    def residuals(p: Any, s: Any, v: Any) -> Any:
        return np.exp(p[0]) * s / (np.exp(p[1]) + s) - v

    def jacobian(p: Any, s: Any, v: Any) -> Any:
        top, half = np.exp(p)
        return np.stack((top * s / (half + s), -top * s * half / (half + s) ** 2), 1)

    close = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
    for i in np.flatnonzero(~hopeless):
        found = scipy.optimize.least_squares(
            residuals, np.zeros(2), jacobian, method="lm", args=(s[i], v[i]), **close
        )
        assert solution.success[i]
        assert solution.loss[i].item() <= found.cost * (1 + 1e-9)
        error = np.linalg.norm(solution.params[i].numpy() - found.x)
        assert error <= 1e-6 * np.linalg.norm(found.x), i


@pytest.mark.parametrize("method", ["newton", "bfgs", "lbfgs", "gauss-newton"])
def test_a_problem_runs_beside_others_as_it_does_alone(method: str, logistics: Logistics) -> None:
    functions: dict[str, Any] = {"loss": logistic}
    start, data = logistics.start, logistics.data
    if method == "gauss-newton":
        draw = seeded(3)
        functions = {"residuals": kinetics}
        data = {
            "s": torch.rand(NUMBER, 9, generator=draw, dtype=DOUBLE),
            "v": torch.rand(NUMBER, 9, generator=draw, dtype=DOUBLE),
        }
        start = torch.zeros(NUMBER, 2, dtype=DOUBLE)
    some = torch.arange(40, 60)  # one of them hopeless
    problem = FunctionBatch(start, data=data, **functions).select(some)
    whole, chunked = (
        haltwise.solve(problem, method=method, gtol=1e-7, chunk_size=size, history=True)
        for size in (None, 7)
    )
    assert len(whole.num_gradients.unique()) > 2
    for name in ("num_gradients", "steps", "outcome", "reason", "success"):
        assert torch.equal(getattr(whole, name), getattr(chunked, name))
    assert whole.history is not None
    for index in range(20):
        alone = haltwise.solve(
            problem.select(torch.tensor([index])), method=method, gtol=1e-7, history=True
        )
        assert alone.history is not None
        assert alone.num_gradients == whole.num_gradients[index]
        count = int(alone.num_gradients)
        torch.testing.assert_close(alone.params[0], whole.params[index], equal_nan=True)
        torch.testing.assert_close(alone.history[0], whole.history[index, :count], equal_nan=True)


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_little_is_evaluated_that_is_not_asked_for(method: str, logistics: Logistics) -> None:
    """Halted problems stay until that costs half an evaluation of each of the others."""
    sizes: list[int] = []

    def counted(*arguments: Tensor, **data: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(arguments[0]))
        return logistic_derivatives(*arguments, **data)

    fine = torch.from_numpy(np.flatnonzero(~logistics.hopeless))
    problem = FunctionBatch(logistics.start, derivatives=counted, data=logistics.data).select(fine)
    solution = haltwise.solve(problem, method=method, chunk_size=NUMBER)
    probes = 3 + 3 + 3 + 1  # tried together, differentiated, each alone; asked for curvature
    last = len(fine) if method == "newton" else 0  # losses behind the last step
    assert sum(sizes) - probes - last <= 1.25 * solution.num_gradients.sum()


# ------------------------------------------------------------------------------------- tolerances


@pytest.mark.parametrize("method", ["newton", "lbfgs", "gauss-newton", "nesterov", "adam"])
def test_tolerances_stop_at_the_first_step_that_meets_them(method: str) -> None:
    draw = seeded(4)
    data = {
        "s": torch.rand(30, 9, generator=draw, dtype=DOUBLE),
        "v": torch.rand(30, 9, generator=draw, dtype=DOUBLE),
    }
    problem = FunctionBatch(torch.zeros(30, 2, dtype=DOUBLE), residuals=kinetics, data=data)
    for name in ("gtol", "ftol", "xtol"):
        tolerance: Any = {name: 1e-3}
        solution = haltwise.solve(problem, method=method, max_steps=80, **tolerance)
        for index in range(0, 30, 7):
            one = problem.select(torch.tensor([index]))
            points = _path(one, method, int(solution.num_gradients[index]))
            met = _met(points, name, 1e-3, least_squares=method == "gauss-newton")
            if solution.outcome[index] == Outcome.HALTED:
                assert met.index(True) == len(points) - 1, (name, index)
                assert name in solution.why(index)
            else:
                assert not any(met)


def _path(problem: FunctionBatch, method: str, count: int) -> list[Point]:
    """All points that an engine evaluates in so many evaluations, one that is refused repeated."""
    engine = engines()[method]
    seen = engine.observe(problem, problem.start)
    point = Point(problem.start, seen.loss, seen.grad)
    memory, points = engine.init(point, seen), [point]
    for _ in range(count - 1):
        proposal = engine.propose(point, memory)
        seen = engine.observe(problem, point.params + proposal.move)
        taken, memory = engine.learn(point, proposal, seen, memory)
        if taken:
            point = Point(point.params + proposal.move, seen.loss, seen.grad)
        points.append(point)
    return points


def _met(points: list[Point], name: str, tol: float, *, least_squares: bool) -> list[bool]:
    """Whether each point meets SciPy's condition, written once more for one problem."""
    met = []
    for number, point in enumerate(points):
        if name == "gtol":
            met.append(max(abs(g) for g in point.grad[0].tolist()) <= tol)
            continue
        before = points[number - 1] if number else point
        if point is before:
            met.append(False)
            continue
        f, g = before.loss.item(), point.loss.item()
        x, step = before.params[0].numpy(), (point.params - before.params)[0].numpy()
        if name == "xtol":
            met.append(np.linalg.norm(step) < tol * (tol + np.linalg.norm(x)))
        elif least_squares:  # these steps go as forecast
            met.append(f - g < tol * f)
        else:
            met.append(abs(f - g) / max(abs(f), abs(g), 1) <= tol)
    return met


def test_a_step_that_falls_short_of_its_forecast_does_not_end_least_squares() -> None:
    """SciPy asks for a quarter of the forecast beside `ftol`."""
    stop = ToleranceStop(ftol=0.1, least_squares=True)
    losses = torch.tensor([10.0, 10.0])
    before = Point(torch.zeros(2, 1), losses, torch.ones(2, 1))
    after = before._replace(loss=losses - 0.5)
    proposal = Proposal(torch.ones(2, 1), -losses, torch.tensor([1.9, 2.1]), losses > 0)
    taken = torch.tensor([True, True])
    memory = stop.learn(before, proposal, after, taken, stop.init(before))
    assert stop.decide(after, proposal, memory)[0].tolist() == [1, -1]


def test_without_tolerance_or_price_those_of_scipy_hold() -> None:
    problem = FunctionBatch(
        torch.tensor([[-1.2, 1.0]], dtype=DOUBLE), residuals=rosenbrock_residuals
    )
    least_squares = haltwise.solve(problem, method="gauss-newton")
    assert set(least_squares.reasons[:3]) == {
        "its gradient is within gtol = 1e-08",
        "the last step lowered the loss by no more than ftol = 1e-08",
        "the last step was no longer than xtol = 1e-08",
    }
    others = haltwise.solve(problem, method="lbfgs")
    assert others.reasons[0] == "its gradient is within gtol = 1e-05"
    assert others.reasons[1].endswith("ftol = 2.220446049250313e-09")


def rosenbrock_residuals(params: Tensor) -> Tensor:
    x, y = params.unbind(1)
    return torch.stack((10 * (y - x * x), 1 - x), 1) * math.sqrt(2)


# ------------------------------------------------------------------------------------------ price


@pytest.mark.parametrize("price", [1e-1, 1e-3, 1e-6])
def test_newton_stops_where_its_decrement_is_not_worth_the_price(
    price: float, logistics: Logistics
) -> None:
    fine = torch.from_numpy(np.flatnonzero(~logistics.hopeless & ~logistics.ill))[:100]
    problem = FunctionBatch(logistics.start, logistic, logistics.data).select(fine)
    solution = haltwise.solve(problem, method="newton", price=price)
    best = haltwise.solve(problem, method="newton", gtol=1e-10)
    params = problem.start
    ends = torch.zeros(100, dtype=torch.int64)
    for step in range(1, 12):  # none of these needs a line search
        _, grad, hessian = problem.observe_curvature(params)
        newton = torch.linalg.solve(hessian, grad)
        decrement = (grad * newton).sum(1)
        ends = torch.where((ends == 0) & (decrement / 2 <= price), step, ends)
        params = params - newton
    assert torch.equal(solution.num_gradients, ends)
    assert set(solution.reason.tolist()) == {1}
    assert solution.success.all()
    # The step at hand was taken, so less than the price is left by far.
    assert ((solution.loss - best.loss) <= 0.3 * price).all()


@pytest.mark.parametrize("method", ["bfgs", "lbfgs", "adam", "nesterov", "newton", "gauss-newton"])
def test_a_higher_price_costs_no_more_and_leaves_no_less(method: str) -> None:
    problem = kinetics_problem(60)
    cheap, dear = (
        haltwise.solve(problem, method=method, price=price, max_steps=150) for price in (1e-6, 1e-2)
    )
    assert (dear.num_gradients <= cheap.num_gradients).all()
    assert dear.num_gradients.sum() < cheap.num_gradients.sum()
    assert dear.loss.sum() >= cheap.loss.sum() - 1e-9


def kinetics_problem(number: int) -> FunctionBatch:
    draw = seeded(4)
    data = {
        "s": 3 * torch.rand(number, 9, generator=draw, dtype=DOUBLE),
        "v": torch.rand(number, 9, generator=draw, dtype=DOUBLE),
    }
    return FunctionBatch(torch.ones(number, 2, dtype=DOUBLE), residuals=kinetics, data=data)


def test_each_problem_keeps_its_own_price_in_chunks() -> None:
    problem, price = kinetics_problem(40), torch.logspace(-8, 0, 40, dtype=DOUBLE)
    whole, chunked = (
        haltwise.solve(problem, method="newton", price=price, chunk_size=size) for size in (None, 7)
    )
    assert torch.equal(whole.num_gradients, chunked.num_gradients)
    assert len(whole.num_gradients.unique()) > 2


# ------------------------------------------------------------------------------------ hard losses


def rosenbrock(params: Tensor) -> Tensor:
    x, y = params.unbind(1)
    return 100 * (y - x.square()).square() + (1 - x).square()


def saddle(params: Tensor) -> Tensor:
    x, y = params.unbind(1)
    return x.square() - y.square() + y.pow(4) / 4


def wall(params: Tensor) -> Tensor:
    return (3 * params - (1 - params.square()).log()).sum(1)


def cauchy(params: Tensor) -> Tensor:
    return (1 + params.square()).log().sum(1)


def steep(params: Tensor) -> Tensor:
    return params.square().sum(1).exp() - 1


HARD: dict[str, tuple[Callable[[Tensor], Tensor], list[float], float]] = {
    "valley": (rosenbrock, [-1.2, 1.0], 0.0),
    "saddle": (saddle, [1.0, 1e-3], -1.0),
    "wall of infinity": (wall, [0.9, -0.9], 2 * wall(torch.tensor([[-0.7207592]])).item()),
    "concave start": (cauchy, [3.0, -5.0], 0.0),
    "steep start": (steep, [4.0, -4.0], 0.0),
}


@pytest.mark.parametrize("method", ["newton", "bfgs", "lbfgs"])
@pytest.mark.parametrize("case", HARD)
def test_hard_losses_are_solved(case: str, method: str) -> None:
    loss, start, least = HARD[case]
    problem = FunctionBatch(torch.tensor([start], dtype=DOUBLE), loss)
    solution = haltwise.solve(problem, method=method, gtol=1e-7)
    assert solution.success.all()
    assert solution.loss.item() == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("method", ["newton", "bfgs", "lbfgs"])
@pytest.mark.parametrize("loss_of", [torch.square, softplus, lambda r: r.square().log1p()])
def test_parameters_in_other_units_are_stopped_at_a_price_as_well(
    loss_of: Callable[[Tensor], Tensor], method: str
) -> None:
    """As where a salary in place of its logarithm is regressed: the minimum is far from the start.

    Quadratic, convex, and not even that: stops are no more than a few prices above the minimum.
    """
    draw = seeded(3)
    x = torch.randn(60, 40, 6, generator=draw, dtype=DOUBLE)
    w, noise = torch.randn(60, 6, generator=draw), torch.randn(60, 40, generator=draw)
    y = (x @ w.double().unsqueeze(-1)).squeeze(-1) + noise
    natural: list[float] = []
    for unit in (1.0, 30.0, 1e4):

        def loss(w: Tensor, x: Tensor, y: Tensor, unit: float = unit) -> Tensor:
            residual = y - (x @ (w / unit).unsqueeze(-1)).squeeze(-1)
            return (loss_of(residual) + 0.1 * residual.square()).sum(1)

        problem = FunctionBatch(torch.zeros(60, 6, dtype=DOUBLE), loss, {"x": x, "y": y})
        found = haltwise.solve(problem, method=method, price=0.05)
        assert found.success.all()
        spent = found.num_gradients.double().mean().item()
        natural = natural or [spent]
        assert spent < natural[0] + 10
        exact = haltwise.solve(problem, method="newton", gtol=0.0, ftol=0.0, max_steps=60)
        assert (found.loss - exact.loss).max() < 0.1


@pytest.mark.parametrize(
    ("method", "curvature", "distance", "price"),
    [
        ("bfgs", 1e-4, 1e3, 1.0),
        ("bfgs", 1e-6, 1e5, 1.0),
        ("bfgs", 1e-7, 1e4, 0.05),
        ("bfgs", 1e-7, 1e5, 0.05),
        ("lbfgs", 1e-4, 1e2, 0.05),
    ],
)
def test_a_price_is_not_held_against_steps_that_are_too_short_to_tell(
    method: str, curvature: float, distance: float, price: float
) -> None:
    """Of parameters in two units: one is as good as found while the other still has far to go."""
    near, far = torch.randn(2, 20, generator=seeded(1), dtype=DOUBLE)
    center = torch.stack((0.8 * near + 1, distance * (1 + 0.2 * far)), 1)
    sizes = torch.tensor([1.0, curvature], dtype=DOUBLE)

    def loss(params: Tensor, center: Tensor) -> Tensor:
        return ((params - center).square() * sizes).sum(1) / 2

    start = torch.full((20, 2), 2.5, dtype=DOUBLE)
    solution = haltwise.solve(
        FunctionBatch(start, loss, {"center": center}), method=method, price=price
    )
    assert solution.success.all()
    assert (solution.loss < 3 * price).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(sorted(engines())))
def test_none_is_ever_worse_than_its_start(seed: int, method: str) -> None:
    draw = seeded(seed)
    scale = 10 ** (8 * torch.rand(6, 1, generator=draw, dtype=DOUBLE) - 4)
    data = {"a": scale * torch.randn(6, 5, generator=draw, dtype=DOUBLE)}

    def residuals(params: Tensor, a: Tensor) -> Tensor:
        x, y = params.unsqueeze(-1).unbind(1)
        return (x * a).sin() + (y * y - a) * x + a.abs().sqrt()

    start = torch.randn(6, 2, generator=draw, dtype=DOUBLE)
    problem = FunctionBatch(start, residuals=residuals, data=data)
    solution = haltwise.solve(problem, method=method, max_steps=20)
    assert (solution.loss <= problem.observe_loss(start, 0)).all()
    torch.testing.assert_close(problem.observe_loss(solution.params, 0), solution.loss)
    assert (solution.num_gradients <= 20).all()
    assert (solution.steps <= solution.num_gradients).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("price", [None, 0.01])
@pytest.mark.parametrize("method", ["bfgs", "lbfgs"])
def test_a_loss_that_falls_without_bound_along_a_line_is_no_success(
    method: str, price: float | None, dtype: torch.dtype
) -> None:
    """As where a prior was forgotten: steps end where the fall meets its own rounding."""
    slope = torch.randn(60, 6, generator=seeded(1), dtype=DOUBLE).to(dtype)

    def loss(params: Tensor, slope: Tensor) -> Tensor:
        return (params * slope).sum(1) + params[:, :3].square().sum(1)

    problem = FunctionBatch(torch.full((60, 6), 0.1, dtype=dtype), loss, {"slope": slope})
    solution = haltwise.solve(problem, method=method, price=price)
    assert not solution.success.any()
    assert {solution.why(index) for index in range(60)} <= {
        "its loss falls without bound",
        "no direction is found in which the loss falls",
        "it used all the gradients allowed; raise max_steps",
    }

    def bounded(params: Tensor, slope: Tensor) -> Tensor:
        return loss(params, slope) + 0.01 * params.square().sum(1)

    problem = FunctionBatch(problem.start, bounded, {"slope": slope})
    assert haltwise.solve(problem, method=method).success.all()


@pytest.mark.parametrize("method", ["bfgs", "lbfgs"])
def test_a_minimum_far_below_the_start_is_a_success(method: str) -> None:
    """In single precision, farther than 1 / eps times the first loss; but its gradient is small."""
    center = torch.linspace(8e3, 2e4, 20).unsqueeze(1).expand(20, 2)

    def loss(params: Tensor, center: Tensor) -> Tensor:
        return (0.3 * params.square() - params * center).sum(1) + (params / 3e4).cosh().sum(1)

    problem = FunctionBatch(torch.zeros(20, 2), loss, {"center": center})
    assert haltwise.solve(problem, method=method).success.all()


def test_bfgs_begins_without_a_hessian_that_is_not_finite() -> None:
    start = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)  # |x - 3|^1.5 + x^1.5 is kinked at 0
    problem = FunctionBatch(start, lambda x: ((x - 3).abs() ** 1.5 + x.abs() ** 1.5).sum(1))
    assert not problem.observe_curvature(start).curvature[0].isfinite().all()
    solution = haltwise.solve(problem, method="bfgs")
    assert solution.success.all()
    torch.testing.assert_close(solution.params, torch.full_like(start, 1.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", sorted(engines()))
def test_single_precision_finds_what_double_finds(method: str) -> None:
    problem = kinetics_problem(30)
    single = FunctionBatch(
        problem.start.float(),
        residuals=kinetics,
        data={name: value.float() for name, value in problem.data.items()},
    )
    ours, double = (
        haltwise.solve(each, method=method, gtol=1e-3, max_steps=300) for each in (single, problem)
    )
    assert ours.params.dtype == ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss.double(), double.loss, rtol=1e-3, atol=1e-4)


def test_update_rules_take_the_steps_of_torch_optim() -> None:
    problem = kinetics_problem(5)
    for rule, make in (
        (Adam(0.03), lambda p: torch.optim.Adam([p], 0.03)),
        (SGD(0.02, 0.9), lambda p: torch.optim.SGD([p], 0.02, 0.9)),
    ):
        solution = haltwise.solve(problem, method=rule, gtol=0.0, max_steps=30, history=True)
        params = problem.start.clone().requires_grad_()
        optimizer, losses = make(params), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = kinetics(params, **problem.data).square().sum(1) / 2
            losses.append(loss.detach())
            loss.sum().backward()
            optimizer.step()
        expected = torch.stack(losses, 1)
        torch.testing.assert_close(solution.history, expected)
        torch.testing.assert_close(solution.loss, expected.amin(1))
        torch.testing.assert_close(solution.steps, expected.argmin(1))


def test_curvature_and_jacobian_are_those_of_finite_differences() -> None:
    problem, width = kinetics_problem(7), 1e-6
    params = problem.start + 0.1
    curved = problem.observe_curvature(params)
    residuals, jacobian = problem.observe_residuals(params)
    torch.testing.assert_close(residuals, kinetics(params, **problem.data))
    seen = problem.observe(params, 0)
    torch.testing.assert_close(curved.loss, seen.loss)
    torch.testing.assert_close(curved.grad, seen.grad)
    for column in range(2):
        shift = width * torch.eye(2, dtype=DOUBLE)[column]
        up, down = (problem.observe(params + sign * shift, 0).grad for sign in (1, -1))
        slope = (up - down) / (2 * width)
        torch.testing.assert_close(slope, curved.curvature[..., column], atol=1e-7, rtol=1e-6)
        up, down = (kinetics(params + sign * shift, **problem.data) for sign in (1, -1))
        slope = (up - down) / (2 * width)
        torch.testing.assert_close(slope, jacobian[..., column], atol=1e-7, rtol=1e-6)


def test_derivatives_of_residuals_may_be_given() -> None:
    problem = kinetics_problem(20)

    def derivatives(p: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        top, half = p.exp().unsqueeze(-1).unbind(1)
        mean = top * s / (half + s)
        return mean - v, torch.stack((mean, -mean * half / (half + s)), -1)

    given = FunctionBatch(
        problem.start, residuals=kinetics, derivatives=derivatives, data=problem.data
    )
    for method in ("gauss-newton", "lbfgs"):
        ours, own = (haltwise.solve(each, method=method) for each in (given, problem))
        torch.testing.assert_close(ours.params, own.params, rtol=1e-5, atol=1e-5)


def test_generalized_linear_models_are_those_written_out(logistics: Logistics) -> None:
    fine = torch.from_numpy(np.flatnonzero(~logistics.hopeless))[:30]
    ridge = torch.tensor([0.1, 0.0, 2.0, 0.5], dtype=DOUBLE)

    def whole(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        z = (x @ w.unsqueeze(-1)).squeeze(-1)
        return (softplus(z) - y * z).sum(1) + (ridge / 2 * w.square()).sum(1)

    data = {"x": logistics.data["x"][fine], "y": logistics.data["y"][fine]}
    start = torch.randn(30, DIM, generator=seeded(1), dtype=DOUBLE)
    written = FunctionBatch(start, whole, data)
    made = haltwise.generalized_linear(lambda z, y: softplus(z) - y * z, ridge)
    given = FunctionBatch(start, derivatives=made, data=data)
    torch.testing.assert_close(given.observe_curvature(start), written.observe_curvature(start))
    straight = haltwise.generalized_linear(lambda z, y: y * z)
    _, grad, hessian = straight(start, **data)
    torch.testing.assert_close(grad, (data["y"].unsqueeze(1) @ data["x"]).squeeze(1))
    assert not hessian.any()
    for unit_loss, message in (
        (lambda z, y: (y * z).sum(1), "a loss of each observation"),
        (lambda z, y: y, "does not depend on the linear predictors"),
    ):
        problem = FunctionBatch(
            start,
            derivatives=haltwise.generalized_linear(unit_loss),
            data=data,
        )
        with pytest.raises(InputError, match=message):
            haltwise.solve(problem, method="newton")
    with pytest.raises(InputError, match="ridge must be finite and at least 0"):
        haltwise.generalized_linear(whole, -1.0)


@pytest.mark.parametrize("which", [0, 1])
def test_derivatives_that_are_not_those_of_the_loss_are_refused(
    which: int, logistics: Logistics
) -> None:
    def wrong(**data: Tensor) -> tuple[Tensor, ...]:
        found = list(logistic_derivatives(**data))
        found[which] = 1.01 * found[which]
        return tuple(found)

    def derivatives(w: Tensor, **data: Tensor) -> tuple[Tensor, ...]:
        return wrong(w=w, **data)

    data = {name: value[:5] for name, value in logistics.data.items()}
    for loss in (logistic, None) if which else (logistic,):
        problem = FunctionBatch(logistics.start[:5], loss, data, derivatives=derivatives)
        with pytest.raises(InputError, match="that derivatives returns is not that of the loss"):
            haltwise.solve(problem, method="newton")


def test_auto_chooses_by_what_the_problem_gives(logistics: Logistics) -> None:
    start, data = logistics.start[:5], {n: v[:5] for n, v in logistics.data.items()}
    wide = torch.ones(3, 40, dtype=DOUBLE)

    def kinked(params: Tensor) -> Tensor:
        return (params - 0.3).abs().sum(1)

    for problem, expected in (
        (kinetics_problem(5), "gauss-newton, as the losses are sums of squares of residuals"),
        (FunctionBatch(start, logistic, data), "bfgs, as a smooth loss of 4 parameters has"),
        (FunctionBatch(start, derivatives=logistic_derivatives, data=data), "newton, as the prob"),
        (FunctionBatch(wide, cauchy), "lbfgs, as second derivatives in 40 parameters would take"),
        (FunctionBatch(wide[:, :2], kinked), "lbfgs, as the loss has no curvature where"),
        (family("quadratic-10d").sample(3, seeded(0)), "lbfgs, as .* gives neither"),
    ):
        solution = haltwise.solve(problem, method="auto", price=1e-3)
        assert re.match(expected, solution.method), solution.method


def test_methods_that_cannot_solve_a_problem_say_so(logistics: Logistics) -> None:
    start, data = logistics.start[:5], {n: v[:5] for n, v in logistics.data.items()}
    problem = FunctionBatch(start, logistic, data)

    def derivatives(w: Tensor, **data: Tensor) -> tuple[Tensor, ...]:
        return logistic_derivatives(w, **data)[:2]

    first = FunctionBatch(start, derivatives=derivatives, data=data)
    stochastic = family("regression-10d-noisy").sample(3, seeded(0))
    quadratic = family("quadratic-10d").sample(3, seeded(0))
    for call, message in (
        (lambda: haltwise.solve(problem, method="gauss-newton"), "no residuals are given"),
        (lambda: haltwise.solve(quadratic, method="newton"), "does not give second derivatives"),
        (lambda: haltwise.solve(quadratic, method="gauss-newton"), "does not give residuals"),
        (lambda: haltwise.solve(problem, method="newtn"), "did you mean 'newton'"),
        (lambda: haltwise.solve(problem, method=3), "method must be a name"),  # type: ignore[arg-type]
        (lambda: haltwise.solve(stochastic, method="lbfgs"), "the same at every step"),
        (lambda: haltwise.solve(problem, "quadratic-10d", method="lbfgs"), "belongs to method"),
        (lambda: haltwise.solve(problem, "quadratic-10d", gtol=1e-3), "by a price and has no gtol"),
        (lambda: haltwise.solve(problem, method="lbfgs", gtol=-1.0), "gtol must be at least 0"),
        (lambda: haltwise.solve(problem, method="lbfgs", price=0.0), "every price must be above 0"),
        (lambda: haltwise.solve(FunctionBatch(start)), "there is nothing to minimise"),
        (
            lambda: haltwise.solve(first, method="newton"),
            "a loss and a gradient; give the loss, too",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()  # type: ignore[no-untyped-call]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("method", sorted(engines()))
def test_a_gpu_finds_the_same(method: str) -> None:
    problem = kinetics_problem(200)
    there = FunctionBatch(
        problem.start.cuda(),
        residuals=kinetics,
        data={name: value.cuda() for name, value in problem.data.items()},
    )
    ours, own = (haltwise.solve(each, method=method, max_steps=100) for each in (there, problem))
    torch.testing.assert_close(ours.loss.cpu(), own.loss, rtol=1e-6, atol=1e-9)


def test_a_price_is_what_steps_must_earn_where_nothing_is_known() -> None:
    """Ten steps in a row that earn nothing, or three where the gradient is small."""
    price = torch.tensor([1.0, 1.0])
    before = Point(torch.zeros(2, 1), torch.tensor([5.0, 5.0]), torch.tensor([[9.0], [1e-3]]))
    stop = PriceStop(price, torch.tensor([10.0, 10.0]))
    none = torch.zeros(2).bool()
    proposal = Proposal(torch.ones(2, 1), -price, torch.tensor([0.1, 0.1]), none)
    memory, stopped = stop.init(before), []
    for _ in range(11):
        stopped.append(stop.decide(before, proposal, memory)[0].tolist())
        memory = stop.learn(before, proposal, before, ~none, memory)
    assert [each.index(0) for each in zip(*stopped, strict=True)] == [10, 3]
