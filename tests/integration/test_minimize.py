"""`haltwise.minimize` against SciPy's calling convention and `haltwise.solve`."""

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

import haltwise
from haltwise import FunctionBatch, InputError, Outcome
from haltwise.stop_rules import FixedBudget, ReturnedIterate, StopPolicy

RANDOM = np.random.default_rng(5)
DESIGN, TARGET = RANDOM.normal(size=(30, 10)), RANDOM.normal(size=30)
START = 0.1 * RANDOM.normal(size=10)


def value(x: Any) -> Any:
    residual = DESIGN @ x - TARGET
    return residual @ residual / 2


def gradient(x: Any) -> Any:
    return DESIGN.T @ (DESIGN @ x - TARGET)


def both(x: Any) -> Any:
    return value(x), gradient(x)


def test_minimize_is_solve_for_one_problem() -> None:
    design, target = torch.from_numpy(DESIGN), torch.from_numpy(TARGET)

    def loss(params: torch.Tensor) -> torch.Tensor:
        return (params @ design.T - target).square().sum(1) / 2

    solution = haltwise.solve(FunctionBatch(torch.from_numpy(START)[None], loss), "regression-10d")
    result = haltwise.minimize(value, START, jac=gradient, optimizer="regression-10d")
    assert result.x.dtype == np.float64
    np.testing.assert_allclose(result.x, solution.params[0].numpy(), rtol=1e-9)
    assert result.fun == pytest.approx(value(result.x), rel=1e-12)
    assert result.fun == pytest.approx(solution.loss.item(), rel=1e-12)
    assert (result.nit, result.njev) == (solution.steps.item(), solution.num_gradients.item())
    assert result.success
    assert result.status == Outcome.HALTED
    assert result.nfev == result.njev + (result.nit == result.njev)
    least = value(np.linalg.lstsq(DESIGN, TARGET, rcond=None)[0])
    assert result.fun - least < 0.05 * (value(START) - least)


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
@pytest.mark.parametrize("jac", [gradient, True, None])
@pytest.mark.parametrize("options", [{}, {"optimizer": "quadratic-10d", "price": 0.01}])
def test_scipy_s_route_is_the_direct_one(jac: Any, options: dict[str, Any]) -> None:
    fun = both if jac is True else value
    direct = haltwise.minimize(fun, START, jac=jac, **options)
    routed = scipy.optimize.minimize(fun, START, jac=jac, method=haltwise.minimize, options=options)
    assert isinstance(routed, scipy.optimize.OptimizeResult)
    assert set(routed) == set(direct)
    for name in ("x", "fun", "success", "status", "message", "nit", "nfev", "njev"):
        np.testing.assert_array_equal(routed[name], direct[name])


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"maxiter": 3}, {"method": "lbfgs"}, {"method": "lbfgs", "maxiter": 4}),
        *({"optimizer": "regression-10d", "guard": guard} for guard in (True, False)),
        {"optimizer": "regression-10d", "guard": False, "price": 0.3},
    ],
)
def test_the_gradient_is_that_at_the_point(settings: dict[str, Any]) -> None:
    result = haltwise.minimize(value, START, jac=gradient, **settings)
    if result.nit == result.njev:  # the last update is returned, where no gradient was asked for
        assert "optimizer" in settings
        assert result.jac is None
    else:
        np.testing.assert_allclose(result.jac, gradient(result.x), rtol=1e-12, atol=1e-12)


def test_few_of_the_points_are_kept() -> None:
    start, rosen = np.zeros(20_000), scipy.optimize.rosen
    tracemalloc.start()
    try:
        result = haltwise.minimize(rosen, start, jac=scipy.optimize.rosen_der, maxiter=80)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.njev == 80
    assert peak < 25 * start.nbytes


def test_forward_differences_come_near_the_gradient() -> None:
    exact, differences = (haltwise.minimize(value, START, jac=jac) for jac in (gradient, None))
    assert differences.nit == exact.nit
    np.testing.assert_allclose(differences.x, exact.x, atol=1e-5)
    assert differences.nfev == exact.nfev + 11 * exact.njev
    same = haltwise.minimize(value, START, jac="2-point")
    np.testing.assert_array_equal(same.x, differences.x)


def test_counts_are_calls() -> None:
    calls = {"value": 0, "gradient": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any, scale: float) -> Any:
            calls[name] += 1
            return scale * function(x)

        return call

    result = haltwise.minimize(
        counted("value", value), list(START), 2.0, jac=counted("gradient", gradient)
    )
    assert (result.nfev, result.njev) == (calls["value"], calls["gradient"])
    assert result.fun == pytest.approx(2 * value(result.x))


def test_a_function_may_spoil_its_argument() -> None:
    def spoiling(x: Any) -> Any:
        found = both(x)
        x[:] = np.nan
        return found

    expected = haltwise.minimize(both, START, jac=True)
    np.testing.assert_array_equal(haltwise.minimize(spoiling, START, jac=True).x, expected.x)


@pytest.mark.parametrize("through", ["direct", "scipy"])
def test_callbacks_see_every_iterate(through: str) -> None:
    seen: list[Any] = []
    told: list[tuple[Any, float]] = []

    def whole(intermediate_result: Any) -> None:
        told.append((intermediate_result.x, intermediate_result.fun))

    def run(callback: Callable[..., Any]) -> Any:
        stop = StopPolicy(FixedBudget(6), ReturnedIterate.NEXT)
        settings: dict[str, Any] = {"stop": stop, "guard": False}
        if through == "direct":
            return haltwise.minimize(both, START, jac=True, callback=callback, **settings)
        return scipy.optimize.minimize(
            both, START, jac=True, method=haltwise.minimize, callback=callback, options=settings
        )

    result = run(seen.append)
    assert len(seen) == result.nit == 7
    np.testing.assert_array_equal(seen[-1], result.x)
    assert run(whole).nit == 7
    for x, (other, fun) in zip(seen, told, strict=True):
        np.testing.assert_array_equal(x, other)
        assert fun == pytest.approx(value(x))


def test_callbacks_see_what_an_engine_takes() -> None:
    """Points it tried and did not take are none of theirs; that it returns is the last of them."""
    seen: list[Any] = []
    valley = scipy.optimize.rosen
    settings: dict[str, Any] = {"jac": scipy.optimize.rosen_der, "callback": seen.append}
    result = haltwise.minimize(valley, [-1.2, 1.0], **settings)
    values = [valley(x) for x in ([-1.2, 1.0], *seen)]
    assert len(seen) < result.nit
    assert np.all(np.diff(values) < 0)
    np.testing.assert_array_equal(seen[-1], result.x)

    def far(intermediate_result: Any) -> None:
        if intermediate_result.fun < 1:
            raise StopIteration

    stopped = haltwise.minimize(valley, [-1.2, 1.0], **settings | {"callback": far})
    number = next(index for index, each in enumerate(values) if each < 1)
    assert (stopped.status, stopped.success, stopped.nit) == (99, False, number)
    assert stopped.fun == values[number]


def test_callbacks_see_what_follows_a_point_that_is_no_number() -> None:
    tried: list[float] = []
    seen: list[float] = []

    def barrier(x: Any) -> Any:
        with np.errstate(invalid="ignore"):
            tried.append(float(70 * x[0] - np.log(x[0])))
        return tried[-1], 70 - 1 / x

    settings: dict[str, Any] = {"method": "lbfgs", "callback": lambda x: seen.append(x[0])}
    result = haltwise.minimize(barrier, [0.02], jac=True, **settings)
    assert np.isnan(tried[1])
    assert seen[-1] == result.x[0] == pytest.approx(1 / 70, rel=1e-3)
    assert len(seen) == sum(tried[i] < np.nanmin(tried[:i]) for i in range(1, len(tried)))


def test_the_default_is_as_good_as_scipy_s() -> None:
    """Not that of weights that were trained on other functions, nor one that stops by a price."""
    result = haltwise.minimize(both, START, jac=True)
    expected = scipy.optimize.minimize(both, START, jac=True)
    assert result.success
    assert result.fun == pytest.approx(expected.fun, rel=1e-8)
    priced = haltwise.minimize(both, START, jac=True, price=0.1)
    assert priced.success
    assert priced.nit < result.nit
    tight = haltwise.minimize(both, START, jac=True, method="lbfgs", gtol=1e-9, maxiter=99)
    assert tight.message == "Its gradient is within gtol = 1e-09"
    assert np.abs(gradient(tight.x)).max() <= 1e-9


@pytest.mark.parametrize("last", [1, 4, 7])
def test_a_callback_may_stop_it(last: int) -> None:
    seen: list[Any] = []

    def callback(xk: Any) -> None:
        seen.append(xk)
        if len(seen) == last:
            raise StopIteration

    stop = StopPolicy(FixedBudget(6), ReturnedIterate.NEXT)
    result = haltwise.minimize(both, START, jac=True, callback=callback, stop=stop, guard=False)
    assert (result.nit, result.status, result.success) == (last, 99, False)
    np.testing.assert_array_equal(result.x, seen[-1])
    assert result.fun == pytest.approx(value(result.x))


def test_running_out_and_going_wrong_are_said() -> None:
    for optimizer, steps in ((None, 0), ("regression-10d", 2)):  # an engine refuses its first step
        short = haltwise.minimize(both, START, jac=True, optimizer=optimizer, maxiter=2)
        assert (short.status, short.success, short.nit) == (Outcome.OUT_OF_STEPS, False, steps)
        assert "maxiter" in short.message

    def wrong(x: Any) -> Any:
        return np.nan, x

    broken = haltwise.minimize(wrong, START, jac=True)
    assert (broken.status, broken.success, broken.nit) == (Outcome.NONFINITE, False, 0)
    np.testing.assert_array_equal(broken.x, START)


@pytest.mark.parametrize("x0", [0.5, [1], np.ones(1, np.float32), np.zeros(1, np.int64)])
def test_whatever_makes_a_vector_starts_it(x0: Any) -> None:
    result = haltwise.minimize(lambda x: (x[0] - 2) ** 2, x0, jac=lambda x: 2 * (x - 2))
    assert result.x.shape == (1,)
    assert result.x.dtype == np.float64
    assert result.fun < 0.5


@pytest.mark.parametrize("jac", [lambda x: 2 * (x[0] - 1), lambda x: np.float32(2 * (x[0] - 1))])
def test_the_gradient_of_one_variable_may_be_a_number(jac: Any) -> None:
    found, expected = (
        haltwise.minimize(lambda x: (x[0] - 1) ** 2, [0.0], jac=each)
        for each in (jac, lambda x: 2 * (x - 1))
    )
    assert found.x == pytest.approx(expected.x, rel=1e-6)


def test_success_is_where_the_price_pays_for_no_more() -> None:
    """A stop of the caller's own after few steps is none, but where little is left to gain."""
    short, long = (
        haltwise.minimize(
            lambda x: x @ x,
            np.ones(10),
            jac=lambda x: 2 * x,
            guard=False,
            stop=StopPolicy(FixedBudget(num), ReturnedIterate.CURRENT),
        )
        for num in (1, 30)
    )
    assert (short.status, short.success) == (Outcome.HALTED, False)
    assert short.message.startswith("1 steps are done, but by the curvature seen 6.2 is left")
    assert np.abs(long.x).max() < 1e-2
    assert long.success
    own = haltwise.minimize(both, START, jac=True, optimizer="regression-10d")
    assert own.success
    assert own.message == "Going on is forecast to gain less than its price"


def test_basins_can_be_hopped() -> None:
    hopped = scipy.optimize.basinhopping(
        both,
        START,
        niter=2,
        rng=np.random.default_rng(0),
        minimizer_kwargs={"method": haltwise.minimize, "jac": True},
    )
    assert hopped.fun <= haltwise.minimize(both, START, jac=True).fun


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bounds": [(0, 1)] * 10}, "knows no bounds"),
        ({"bounds": scipy.optimize.Bounds(0, 1)}, "knows no bounds"),
        ({"constraints": {"type": "eq", "fun": value}}, "knows no constraints"),
        ({"hess": lambda x: np.eye(10)}, "knows no hess"),
        ({"hessp": lambda x, p: p}, "knows no hessp"),
        ({"tol": 1e-6}, "give gtol, ftol, xtol or price"),
        ({"options": {"maxls": 20}}, "knows no maxls"),
        ({"options": {"gtol": -1e-6}}, "gtol"),
        ({"options": {"optimizer": "nobody"}}, "unknown optimizer 'nobody'"),
    ],
)
def test_what_scipy_knows_and_this_does_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scipy.optimize.minimize(both, START, jac=True, method=haltwise.minimize, **settings)
    with pytest.raises(InputError, match=message):
        haltwise.minimize(both, START, jac=True, **settings.get("options", settings))


@pytest.mark.parametrize(
    ("fun", "x0", "jac", "message"),
    [
        (both, np.zeros((2, 5)), True, r"a vector of real numbers, got shape \(2, 5\)"),
        (both, START + 1j, True, "got shape .* of complex128"),
        (both, START * np.nan, True, "NaN or infinity"),
        (lambda x: x, START, gradient, r"one real number, got shape \(10,\)"),
        (value, START, lambda x: x[:3], r"shape of x, \(10,\), got \(3,\)"),
        (value, START, lambda x: None, "gradient must hold real numbers"),
        (lambda x: None, START, gradient, "value of fun must hold real numbers"),
        (lambda x: 10**400, START, gradient, "value of fun must hold real numbers"),
        (value, START, True, "must return the value and the gradient, got float64"),
        (both, "start", True, "x0 must hold real numbers"),
        (both, [[1.0], [1.0, 2.0]], True, "x0 must hold real numbers"),
        (None, START, True, "fun must be a function, got None"),
        (value, START, "cs", "jac must be a function, True, None or '2-point', got 'cs'"),
    ],
)
def test_functions_that_will_not_do(fun: Any, x0: Any, jac: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        haltwise.minimize(fun, x0, jac=jac)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"callback": 3}, "callback must be a function, got 3"),
        ({"disp": "no"}, "disp must be True or False, got 'no'"),
        ({"guard": "no"}, "guard must be True or False, got 'no'"),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        haltwise.minimize(both, START, jac=True, **settings)


def test_a_callback_without_a_signature_is_called() -> None:
    found = haltwise.minimize(both, START, jac=True, callback=max, disp=0)  # type: ignore[arg-type]
    assert found.success


def test_a_missing_scipy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install 'haltwise\[scipy\]'"):
        haltwise.minimize(both, START, jac=True)


def test_a_loss_that_was_observed_is_not_evaluated_again() -> None:
    result = haltwise.minimize(
        both, START, jac=True, stop=StopPolicy(FixedBudget(3), ReturnedIterate.BEST)
    )
    assert result.fun == pytest.approx(value(result.x))
    assert result.nfev == result.njev == 4
