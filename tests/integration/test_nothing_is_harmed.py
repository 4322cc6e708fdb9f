"""What a user's own functions do to their arguments, hide from gradients or mask harms nobody."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from draws import DOUBLE
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, GradientWarning, InputError
from haltwise.certificates import RiskTable
from haltwise.tasks.trial import require_solvable

METHODS = ["newton", "bfgs", "lbfgs", "adam", "lstm"]


def squares(params: Tensor, y: Tensor) -> Tensor:
    return (params - y).square().sum(1)


def projecting(params: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        params.clamp_(min=0.5)
    return squares(params, y)


def centring(params: Tensor, y: Tensor) -> Tensor:
    y -= y.mean(1, keepdim=True)  # a second time it changes nothing
    return squares(params, y)


def deriving(params: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    params -= y
    return params.square().sum(1), 2 * params


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["params", "named", "data", "residuals", "derivatives"])
def test_a_function_cannot_change_what_it_is_lent(method: str, kind: str) -> None:
    start, y = torch.full((6, 2), -1.0, dtype=DOUBLE), torch.rand(6, 2, dtype=DOUBLE)
    before, data = (start.clone(), y.clone()), {"y": y}
    given: dict[str, Any] = {"loss": projecting if kind == "params" else centring}
    if kind == "named":
        given["loss"] = lambda params, y: projecting(params["x"], y)
    elif kind == "residuals":
        given = {"residuals": lambda params, y: params - y.mul_(0.5)}
    elif kind == "derivatives":
        given = {"loss": squares, "derivatives": deriving}
    begin = {"x": start} if kind == "named" else start
    with pytest.raises(InputError, match=r"in ?place"):
        haltwise.solve(FunctionBatch(begin, data=data, **given), method=method)
    assert torch.equal(start, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("method", METHODS)
def test_nor_by_a_way_that_leaves_no_trace(method: str) -> None:
    def hidden(params: Tensor) -> Tensor:
        params.data.clamp_(min=0.5)
        return params.square().sum(1)

    start = torch.full((6, 2), -1.0, dtype=DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = haltwise.solve(FunctionBatch(start, hidden), method=method)
    assert (start == -1).all()
    torch.testing.assert_close(solution.loss, hidden(solution.params.clone()))


def test_a_function_may_change_what_it_has_made() -> None:
    def loss(params: dict[str, Tensor]) -> Tensor:
        rate = params["rate"]  # made of its logarithm
        rate.mul_(2)
        return (rate - 3).square()

    start = {"rate": torch.ones(5, dtype=DOUBLE)}
    batch = FunctionBatch(start, loss, bounds={"rate": haltwise.positive()})
    found = haltwise.solve(batch, method="newton").params["rate"]
    torch.testing.assert_close(found, torch.full_like(found, 1.5))


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.detach(),
        lambda x: torch.from_numpy(x.detach().numpy()),
        lambda x: x.detach() + 0 * x,
        torch.round,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_gradient_that_is_cut_is_warned_of(
    cut: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    start = torch.randn(8, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def loss(params: Tensor) -> Tensor:
        kept, lost = params.split(2, 1)
        whole = cut(3 * lost) / 3 if cut is not torch.round else 3 * lost + cut(lost).detach()
        surrogate: Tensor = kept.square().sum(1) + whole.square().sum(1)
        return surrogate if cut is not torch.round else surrogate.detach() + kept.sum(1)

    with pytest.warns(GradientWarning, match="not that of its values"):
        haltwise.solve(FunctionBatch(start, loss), method="lbfgs")


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("dim", [1, 2, 3, 10, 11])
@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("weight", [1.0, 40.0])
def test_where_it_is_cut_rounding_hides_nothing(
    dtype: torch.dtype, dim: int, start: float, weight: float
) -> None:
    def loss(params: Tensor) -> Tensor:
        return params.square().sum(1) + weight * params.detach().square().sum(1)

    with pytest.warns(GradientWarning, match="not that of its values"):
        require_solvable(FunctionBatch(torch.full((3, dim), start, dtype=dtype), loss))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_tensors_of_the_loss_s_own_may_be_narrow(dtype: torch.dtype) -> None:
    own = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))

    def loss(params: Tensor) -> Tensor:
        return (params.float() @ own).square().sum(1).to(params.dtype)

    require_solvable(FunctionBatch(torch.ones(3, 4, dtype=dtype), loss))
    require_solvable(FunctionBatch(torch.ones(3, 4), lambda params: (params @ own).square().sum(1)))


@pytest.mark.parametrize(
    "loss",
    [
        lambda params: params.square().sum(1),
        lambda params: params.abs().sum(1),
        lambda params: params.relu().sum(1) + 1e-3 * params.square().sum(1),
        lambda params: 1e9 + params.square().sum(1),  # the differences are rounding
        lambda params: (1e7 * params).sin().sum(1),  # the differences are too long
        lambda params: 3 + 0 * params.sum(1),
        lambda params: params.log().sum(1),
        lambda params: 1e30 * params.square().sum(1),
        lambda params: 1e-30 * params.square().sum(1),
        lambda params: (30 * params).exp().sum(1),
        lambda params: torch.where(params.sum(1) > 0, torch.inf, params.square().sum(1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_gradients_that_are_right_are_not(loss: Any, dtype: torch.dtype, scale: float) -> None:
    start = torch.randn(8, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    require_solvable(FunctionBatch(start * scale, loss))


def test_a_wrong_gradient_is_no_success() -> None:
    """As in SciPy, whose line search fails there."""
    valley = scipy.optimize.rosen
    right = scipy.optimize.rosen_der
    assert haltwise.minimize(valley, [-1.2, 1.0], jac=right).success
    for wrong in (lambda x: -right(x), lambda x: right(x)[::-1].copy()):
        result = haltwise.minimize(valley, [-1.2, 1.0], jac=wrong)
        assert not result.success
        assert "its gradient right?" in result.message
        assert not scipy.optimize.minimize(valley, [-1.2, 1.0], jac=wrong).success


def test_where_rounding_ends_the_descent_it_is_a_success() -> None:
    start = torch.randn(20, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    problem = FunctionBatch(start, lambda params: 1e8 + (params - 1).square().sum(1))
    solution = haltwise.solve(problem, method="bfgs", gtol=0.0)
    assert solution.success.all()


@pytest.mark.parametrize("where", ["start", "named", "data", "table", "x0", "gradient"])
def test_what_an_array_masks_is_not_taken_for_numbers(where: str) -> None:
    hidden = np.ma.masked_array(np.full((4, 2), 1e6), [[False, True]] * 4)
    plain = np.zeros((4, 2))
    makers: dict[str, Callable[[], Any]] = {
        "start": lambda: FunctionBatch(hidden, squares, {"y": plain}),
        "named": lambda: FunctionBatch({"x": hidden}, lambda params: params["x"].sum(1)),
        "table": lambda: haltwise.from_groups({"g": plain[:, 0], "x": hidden[:, 1]}, by="g"),
        "data": lambda: FunctionBatch(plain, squares, {"y": hidden}),
        "x0": lambda: haltwise.minimize(lambda x: float(x @ x), hidden[0]),
        "gradient": lambda: haltwise.minimize(
            lambda x: float(x @ x), plain[0], jac=lambda _: hidden[0]
        ),
    }
    with pytest.raises(InputError, match="is a masked array"):
        makers[where]()
    unmasked = np.ma.masked_array(np.ones((4, 2)))
    assert haltwise.solve(FunctionBatch(plain, squares, {"y": unmasked})).success.all()


def test_arrays_may_have_the_other_byte_order() -> None:
    start, y = np.zeros((4, 2), ">f8"), np.arange(8.0).reshape(4, 2).astype(">f4")
    solution = haltwise.solve(FunctionBatch(start, squares, {"y": y}))
    np.testing.assert_allclose(solution.params, y, rtol=1e-6)
    assert solution.params.dtype == np.float64
    named = haltwise.solve(FunctionBatch({"x": start}, lambda p: (p["x"] - 1).square().sum(1)))
    np.testing.assert_allclose(named.params["x"], 1)


def test_a_masked_number_is_none(tmp_path: Path) -> None:
    """NumPy's mean of nothing is masked, and counts as 0 where it is made a float."""
    nothing = np.ma.masked_array([0.3, 0.4], [True, True]).mean()
    batch = FunctionBatch(torch.ones(2, 2), lambda params: params.square().sum(1))
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    prices: Any = np.ma.masked_array([0.1, 0.1], [True, False])
    for taken in (
        lambda: haltwise.RunMonitor(price=0.1).update(nothing),
        lambda: haltwise.RunMonitor(price=0.1).update(np.ma.masked_array([0.7], [True])),
        lambda: haltwise.RunMonitor(price=0.1, target=nothing),
        lambda: haltwise.HaltingMonitor.recording(tmp_path).update(nothing),
        lambda: haltwise.LearnedOptimizer([param]).step(loss=nothing),
        lambda: haltwise.solve(batch, price=nothing),
        lambda: haltwise.solve(batch, price=prices),
        lambda: haltwise.solve(batch, gtol=nothing),
        lambda: haltwise.solve(batch, "regression-10d", param_scale=prices),
        lambda: RiskTable.of(np.ones((2, 1)), groups=prices),
        lambda: haltwise.generalized_linear(lambda z: z, ridge=prices),
    ):
        with pytest.raises(InputError, match="masked"):
            taken()


def test_prices_and_ridges_in_lists_have_all_digits() -> None:
    batch = FunctionBatch(torch.ones(2, 2, dtype=DOUBLE), lambda params: params.square().sum(1))
    prices: Any = [1e-50] * 2
    assert haltwise.solve(batch, price=prices).success.all()
    x, y = torch.randn(2, 9, 3, dtype=DOUBLE), torch.rand(2, 9, dtype=DOUBLE)
    found = []
    ridges: Any = (0.1, [0.1] * 3, torch.tensor(0.1, dtype=DOUBLE))
    for ridge in ridges:
        given = haltwise.generalized_linear(lambda z, y: z.exp() - y * z, ridge)
        start = torch.zeros(2, 3, dtype=DOUBLE)
        problem = FunctionBatch(start, derivatives=given, data={"x": x, "y": y})
        found.append(haltwise.solve(problem).params)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    for wrong in ("a", None, 1j, 10**400, math.inf, -1.0):
        with pytest.raises(InputError, match="ridge must"):
            haltwise.generalized_linear(lambda z: z, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["small-networks", "regression-10d"])
def test_to_load_weights_draws_nothing(weights: str) -> None:
    before = torch.get_rng_state()
    haltwise.load(weights)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, DOUBLE])
def test_a_monitor_goes_on_under_any_default_dtype(default: torch.dtype) -> None:
    param = torch.ones(10, requires_grad=True)
    param.grad = torch.ones(10)
    monitor = haltwise.HaltingMonitor("regression-10d-plain-adam")
    monitor.start([param])
    monitor.update(5.0, [param])
    state = monitor.state_dict()
    torch.set_default_dtype(default)
    try:
        haltwise.HaltingMonitor("regression-10d-plain-adam").load_state_dict(state)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("default", [torch.float16, DOUBLE])
def test_the_default_dtype_decides_nothing(method: str, default: torch.dtype) -> None:
    y = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))

    def quartic(params: Tensor, y: Tensor) -> Tensor:
        return squares(params, y) + (params - y).pow(4).sum(1)

    problem = FunctionBatch(torch.zeros(20, 2), quartic, {"y": y})
    expected = haltwise.solve(problem, method=method)
    torch.set_default_dtype(default)
    try:
        found = haltwise.solve(problem, method=method)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.params.dtype == torch.float32
    assert torch.equal(found.params, expected.params)


@pytest.mark.parametrize("weights", ["mnist-mlp", "regression-10d"])
def test_a_callback_that_stops_gets_the_lowest_point_it_saw(weights: str) -> None:
    seen: list[float] = []

    def callback(intermediate_result: Any) -> None:
        seen.append(intermediate_result.fun)
        if len(seen) == 10:
            raise StopIteration

    settings: dict[str, Any] = {"jac": scipy.optimize.rosen_der, "callback": callback}
    settings["optimizer"] = weights
    result = haltwise.minimize(scipy.optimize.rosen, [-1.2, 1.0], **settings)
    assert result.fun == min(seen) == scipy.optimize.rosen(result.x)
    assert result.nit == 1 + int(np.argmin(seen))
    if weights == "mnist-mlp":
        assert result.fun < seen[-1]
    seen.clear()
    last = haltwise.minimize(scipy.optimize.rosen, [-1.2, 1.0], guard=False, **settings)
    assert last.fun == seen[-1]


def test_callbacks_see_no_point_that_has_no_gradient() -> None:
    """Nothing can go on from there, so that it is none that is returned either."""
    seen: list[float] = []

    def wall(x: Any) -> float:
        return float(np.square(x - 1).sum()) if x[0] <= 0.2 else float("nan")

    settings: dict[str, Any] = {"callback": lambda x: seen.append(wall(x))}
    for method in ("lbfgs", "adam"):
        seen.clear()
        result = haltwise.minimize(wall, [0.0, 0.0], method=method, **settings)
        assert result.fun == min(seen)


@pytest.mark.parametrize("method", ["newton", "bfgs", "lbfgs", "gauss-newton", "lstm"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("bounds", [haltwise.interval(0, 1), haltwise.positive(), "below"])
def test_a_start_at_a_bound_where_nothing_is_felt_is_no_success(
    method: str, dtype: torch.dtype, bounds: Any
) -> None:
    """In the logarithm of the distance to its bound, the loss has no slope there."""
    y, start = torch.tensor([-1.0, 0.0, 0.4, 0.9], dtype=dtype), torch.full((4,), 1e-7, dtype=dtype)
    sign = -1 if bounds == "below" else 1
    limit = haltwise.interval(-torch.inf, 0) if bounds == "below" else bounds

    def residuals(params: dict[str, Tensor], y: Tensor) -> Tensor:
        return (params["x"] - y).unsqueeze(1)

    def made(begin: Tensor) -> FunctionBatch:
        given: dict[str, Any] = {"residuals": residuals}
        data = {"y": sign * y}
        return FunctionBatch({"x": sign * begin}, data=data, bounds={"x": limit}, **given)

    solution = haltwise.solve(made(start), method=method)
    least = 3 * haltwise.load("regression-10d").card.price if method == "lstm" else 1e-3
    off = 0.5 * (solution.params["x"] - sign * y.clamp_min(0)).square() > least
    assert not solution.success[off].any()
    if method == "lbfgs":
        assert off.tolist() == [False, False, True, True]
        assert solution.success.tolist() == [True, True, False, False]
        assert solution.why(2).endswith("or by another method")
    inside = haltwise.solve(made(torch.full_like(y, 0.3)), method=method)
    off = 0.5 * (inside.params["x"] - sign * y.clamp_min(0)).square() > 1e-2
    assert not inside.success[off].any()  # a step may lead to the other bound
    assert method != "lbfgs" or inside.success.all()


@pytest.mark.parametrize("method", ["newton", "bfgs", "lbfgs"])
def test_a_minimum_at_a_bound_is_one_though_another_parameter_s_step_would_pull_it_off(
    method: str,
) -> None:
    """At x = 1 nothing draws y from 0; farther from x = 1 it would, but the loss is higher."""

    def loss(params: dict[str, Tensor]) -> Tensor:
        x, y = params["x"] - 1, params["y"]
        return x.square() - x * y + y.square() - 1e-9 * y

    one = torch.ones(1, dtype=DOUBLE)
    start = {"x": one, "y": 1e-12 * one}
    problem = FunctionBatch(start, loss, bounds=haltwise.positive())
    assert haltwise.solve(problem, method=method).success.all()
