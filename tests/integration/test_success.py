"""Success: a problem halted where the price pays for no more, by the curvature seen."""

import math
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_guard import himmelblau, rosenbrock
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, Outcome
from haltwise.engines import engines
from haltwise.engines.lbfgs import forecast_gain
from haltwise.engines.stops import FLAT
from haltwise.rollout.ledger import MEMORY
from haltwise.stop_rules import FixedBudget, ReturnedIterate, StopPolicy
from haltwise.tasks import family
from haltwise.tasks.trial import require_solvable

SOLVERS = ("regression-2d", "regression-10d", "quadratic-10d", "student-t-10d")


def beale(params: Tensor) -> Tensor:
    x, y = params.unbind(1)
    terms = (c - x + x * y**power for power, c in ((1, 1.5), (2, 2.25), (3, 2.625)))
    return torch.stack([term.square() for term in terms]).sum(0)


def logistic(params: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(params.shape[1])
    design = torch.randn(100, params.shape[1], generator=draw, dtype=torch.float64)
    label = (torch.rand(100, generator=draw, dtype=torch.float64) < design[:, 0].sigmoid()).double()
    margin = params @ design.T * (2 * label - 1)
    return -torch.nn.functional.logsigmoid(margin).sum(1) + params.square().sum(1) / 2


CASES: dict[str, tuple[Any, list[float]]] = {
    "Rosenbrock 2-D": (rosenbrock, [-1.2, 1.0]),
    "Rosenbrock 20-D": (rosenbrock, [-1.2, 1.0] * 10),
    "Himmelblau": (himmelblau, [0.0, 0.0]),
    "Beale from 0": (beale, [0.0, 0.0]),
    "Beale from 1": (beale, [1.0, 1.0]),
    "logistic 2-D": (logistic, [0.0] * 2),
    "logistic 10-D": (logistic, [0.0] * 10),
}


def uneven(params: Tensor) -> Tensor:
    sizes = torch.logspace(0, 6, params.shape[1], dtype=params.dtype)
    return (sizes * params.square()).sum(1) / 2


def saddle(params: Tensor) -> Tensor:
    x, y = params.unbind(1)
    return x.pow(4) / 4 - x.square() / 2 + y.square()


HARD: dict[str, tuple[Any, list[float]]] = {
    **CASES,
    "uneven quadratic": (uneven, [1.0] * 6),
    "beside a saddle": (saddle, [1e-6, 1.0]),
    "on a plateau": (lambda params: 1 - (-params.square().sum(1) / 2).exp(), [4.0, 1.0]),
    "kinks": (lambda params: params.abs().sum(1), [3.0, -1.0, 0.3]),
    "all but kinks": (lambda params: (1e-8 + params.square()).sqrt().sum(1), [1e3, 1.0]),
    "walls": (lambda params: (3 * params - (1 - params.square()).log()).sum(1), [0.9, 0.0]),
}


def pays(loss: Any, begun: Tensor, end: Tensor, price: float) -> float:
    """What SciPy's L-BFGS-B earns from there on above its price, in prices, at the best moment."""
    values: list[float] = []

    def counted(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        leaf = torch.from_numpy(x[None].copy()).requires_grad_()
        value = loss(leaf)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        values.append(value.item())
        return value.item(), grad[0].numpy()

    slope = [np.linalg.norm(counted(at.numpy())[1]) for at in (begun, end)]
    if slope[1] <= FLAT * slope[0]:
        return 0.0
    values.clear()
    scipy.optimize.minimize(counted, end.numpy(), jac=True, method="L-BFGS-B")
    gained = (values[0] - np.fmin.accumulate(values)) / price
    return float((gained - np.arange(len(values))).max())


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("case", CASES)
def test_no_success_where_the_price_clearly_pays_for_more(case: str, name: str) -> None:
    loss, start = CASES[case]
    begun = torch.tensor([start], dtype=torch.float64)
    solution = haltwise.solve(FunctionBatch(begun, loss), name, max_steps=300)
    if solution.success:
        price = haltwise.load(name).card.price
        assert pays(loss, begun[0], solution.params[0], price) < 3


@pytest.mark.parametrize("case", HARD)
def test_no_engine_succeeds_where_the_price_clearly_pays_for_more(case: str) -> None:
    """But where the curvature at the point knows the gain of one step, which is all it knows.

    Along the last step of a rule, it tells nothing across a kink.
    """
    loss, start = HARD[case]
    begun, price = torch.tensor([start], dtype=torch.float64), 0.1
    for method, engine in engines().items():
        if method == "gauss-newton" or (case == "kinks" and not engine.is_monotone):
            continue
        problem = FunctionBatch(begun, loss)
        found = haltwise.solve(problem, method=method, price=price, history=True, max_steps=99)
        assert found.history is not None
        lowest = found.history.nan_to_num(math.inf).amin()
        assert found.loss <= lowest + 1e-12 * lowest.abs(), method
        torch.testing.assert_close(found.loss, loss(found.params))
        if found.success and "another step" not in found.why(0):
            assert pays(loss, begun[0], found.params[0], price) < 3, (method, found.why(0))


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ftol", [None, 1e-4])
def test_a_start_far_out_is_left(method: str, dtype: torch.dtype, ftol: float | None) -> None:
    """There a step of length 1 moves nothing in float32, and little more in float64."""
    start = torch.tensor([[1e12, 3e11], [1e5, 1e6]], dtype=dtype)

    def loss(params: Tensor) -> Tensor:
        return params[:, 0].square() + 9 * params[:, 1].square()

    found = haltwise.solve(FunctionBatch(start, loss), method=method, ftol=ftol)
    assert found.success.all()
    assert (found.loss < 1e-9 * loss(start)).all()


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
@pytest.mark.parametrize(("case", "name"), list(zip(HARD, cycle(SOLVERS), strict=False)))
def test_a_callback_sees_nothing_better_than_what_is_returned(case: str, name: str) -> None:
    loss, start = HARD[case]

    def both(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        leaf = torch.from_numpy(x[None]).requires_grad_()
        value = loss(leaf).sum()
        return value.item(), torch.autograd.grad(value, leaf)[0][0].numpy()

    seen = [both(np.array(start))[0]]
    found = haltwise.minimize(
        both, start, jac=True, optimizer=name, callback=lambda x: seen.append(both(x)[0])
    )
    assert found.fun == pytest.approx(both(found.x)[0], rel=1e-12)
    assert found.fun <= np.nanmin(seen) + 1e-12 * abs(found.fun)


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
def test_known_early_stops_are_told_and_explained() -> None:
    for case, worth in (("Rosenbrock 2-D", 14), ("Beale from 1", 1.4)):
        loss, start = CASES[case]

        def value(x: Any, loss: Any = loss) -> float:
            return float(loss(torch.from_numpy(x[None])))

        result = haltwise.minimize(value, start, optimizer="regression-2d")
        assert result.fun > worth
        assert (result.status, result.success) == (Outcome.HALTED, False)
        assert "but by the curvature seen" in result.message
        assert "left to gain" in result.message
        problem = FunctionBatch(torch.tensor([start], dtype=torch.float64), loss)
        solution = haltwise.solve(problem, "regression-2d")
        assert "1 halted too early" in repr(solution)


@pytest.mark.parametrize("name", ["regression-2d", "regression-10d", "student-t-10d"])
def test_what_is_truly_solved_is_a_success(name: str) -> None:
    problem = family(name).sample(1000, torch.Generator().manual_seed(3))
    solution = haltwise.solve(problem, name)
    left = (solution.loss - problem.reference_loss) / haltwise.load(name).card.price
    solved = (solution.outcome == Outcome.HALTED) & (left <= 1)
    assert solved.sum() > 50
    assert solution.success[solved].double().mean() > 0.97
    assert not solution.success[solution.outcome != Outcome.HALTED].any()


def test_success_costs_no_gradient_and_holds_without_the_guard() -> None:
    """Counted by the loss itself: as many as the solution says."""
    calls = 0

    def loss(params: Tensor) -> Tensor:
        nonlocal calls
        calls += int(params.requires_grad) * len(params)
        return params.square().sum(1)

    for guard, steps, success in ((False, 1, False), (False, 30, True), (True, 30, True)):
        calls = 0
        stop = StopPolicy(FixedBudget(steps), ReturnedIterate.CURRENT)
        problem = FunctionBatch(torch.ones(1, 10), loss)
        require_solvable(problem)
        checked, calls = calls, 0
        solution = haltwise.solve(problem, "regression-10d", stop, guard=guard)
        assert calls - checked == solution.num_gradients.sum()
        assert bool(solution.success) is success


def test_where_no_step_was_taken_the_weights_are_trusted_and_others_are_not() -> None:
    problem = family("regression-2d").sample(20, torch.Generator().manual_seed(3))
    high = haltwise.load("regression-2d").card.price * 10
    own = haltwise.solve(problem, "regression-2d", price=high)
    once = own.num_gradients == 1
    assert own.success[once].all()
    stop = StopPolicy(FixedBudget(0), ReturnedIterate.CURRENT)
    other = haltwise.solve(problem, "regression-2d", stop, guard=False)
    assert (other.num_gradients == 1).all()
    assert not other.success.any()
    assert other.left.isnan().all()


@pytest.mark.parametrize(
    ("method", "loss", "start", "dtype"),
    [
        ("gradient-descent", lambda p: 1e8 * (p - 1).square().sum(1), 0.0, torch.float64),
        ("momentum", lambda p: 1e8 * (p - 1).square().sum(1), 0.0, torch.float64),
        ("adam", lambda p: 1e30 * (p - 1).square().sum(1), 0.0, torch.float32),
        ("lstm", lambda p: 1e30 * (p - 1).square().sum(1), 0.0, torch.float32),
        ("lstm", lambda p: p.abs().sum(1), 1e6, torch.float32),
    ],
)
def test_what_diverges_overflows_or_gives_up_at_once_is_no_success(
    method: str, loss: Any, start: float, dtype: torch.dtype
) -> None:
    """The point returned is no worse than the start, and nowhere near the minimum."""
    solution = haltwise.solve(
        FunctionBatch(torch.full((1, 3), start, dtype=dtype), loss), method=method, max_steps=60
    )
    first = loss(torch.full((1, 3), start, dtype=dtype))
    assert 0.99 * first < solution.loss <= first
    assert not solution.success


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("param_scale", [None, 1e-3])
def test_units_far_from_those_of_training_leave_no_more_of_the_loss(
    scale: float, param_scale: float | None
) -> None:
    """A thousand times larger parameters had too small a gradient for a single step."""
    batch = family("regression-10d").sample(3, torch.Generator().manual_seed(5))

    def loss(params: Tensor, i: Tensor) -> Tensor:
        return batch.select(i).observe_loss(params / scale, 0)

    problem = FunctionBatch(batch.start * scale, loss, {"i": torch.arange(3)})
    own = haltwise.solve(batch, "regression-10d")
    solution = haltwise.solve(problem, "regression-10d", param_scale=param_scale)
    assert (solution.loss < 1.02 * own.loss).all()


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, MEMORY))
def test_the_forecast_is_that_of_the_dense_bfgs_matrix(seed: int, dim: int, pairs: int) -> None:
    draw = np.random.default_rng(seed)
    root = draw.normal(size=(dim, dim))
    hessian = root @ root.T + 0.1 * np.eye(dim)
    steps, grad = draw.normal(size=(pairs, dim)), draw.normal(size=dim)
    changes = steps @ hessian
    inverse = steps[0] @ changes[0] / (changes[0] @ changes[0]) * np.eye(dim)
    for step, change in zip(steps[::-1], changes[::-1], strict=True):  # from the oldest
        rho = 1 / (step @ change)
        left = np.eye(dim) - rho * np.outer(step, change)
        inverse = left @ inverse @ left.T + rho * np.outer(step, step)
    padded = torch.zeros(2, 1, MEMORY, dim, dtype=torch.float64)
    padded[0, 0, :pairs], padded[1, 0, :pairs] = map(torch.from_numpy, (steps, changes))
    found = forecast_gain(torch.from_numpy(grad)[None], *padded)
    assert found.item() == pytest.approx(grad @ inverse @ grad / 2, rel=1e-6)


def test_a_concave_way_forecasts_without_bound() -> None:
    steps = torch.zeros(1, MEMORY, 3)
    steps[0, 0] = 1
    assert forecast_gain(torch.ones(1, 3), steps, -steps).isinf().all()


# ------------------------------------------------------------------------ starts without a gradient


@pytest.mark.parametrize("method", ["newton", "gauss-newton", "bfgs", "lbfgs", "adam", "lstm"])
def test_a_start_at_a_maximum_or_saddle_is_no_success(method: str) -> None:
    """Products of factors that begin at 0, and what is as low as it can be, or flat, beside."""

    def residuals(params: Tensor, kind: Tensor) -> Tensor:
        x, y = params.unbind(1)
        found = torch.stack((x * y - 1, x.cos(), x.square() + y.square(), 0 * x + 3))
        return found.gather(0, kind.unsqueeze(0)).mT

    start, kind = torch.zeros(4, 2, dtype=torch.float64), torch.arange(4)
    given: Any = {"residuals": residuals}
    if method != "gauss-newton":
        given = {"loss": lambda params, kind: residuals(params, kind).square().sum(1) / 2}
    found = haltwise.solve(FunctionBatch(start, data={"kind": kind}, **given), method=method)
    assert found.success.tolist() == [False, False, True, True]
    assert found.num_gradients.tolist() == [1] * 4
    assert "saddle" in found.why(0)
    assert found.why(2) == "the gradient is zero"


def test_minimize_says_so_too_and_tells_its_callback_of_nothing() -> None:
    told: list[Any] = []
    found = haltwise.minimize(
        lambda x: (x[0] * x[1] - 1) ** 2,
        [0.0, 0.0],
        jac=lambda x: 2 * (x[0] * x[1] - 1) * x[::-1],
        callback=told.append,
    )
    assert not found.success
    assert "start elsewhere" in found.message
    assert found.fun == 1
    assert not told


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_what_is_asked_in_the_end_is_asked_in_chunks(start: float) -> None:
    """Of starts without a gradient and of parameters near bounds, as the problems were solved."""
    sizes: list[int] = []

    def counted(params: Tensor, x: Tensor) -> Tensor:
        sizes.append(len(params))
        return (params - start).square().sum(1) + 0 * x[:, 0]

    data = {"x": torch.zeros(200, 2**14, dtype=torch.float64)}
    bounds = haltwise.interval(-1, 1) if start else None
    problem = FunctionBatch(
        torch.full((200, 2), start, dtype=torch.float64), counted, data, bounds=bounds
    )
    assert haltwise.solve(problem, method="lbfgs").success.all()
    assert 100 < max(sizes) < 200
