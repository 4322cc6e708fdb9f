"""The callback for `scipy.optimize`, with each kind of its methods."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from scipy.optimize import rosen, rosen_der
from tiny_rules import patience

from haltwise import InputError, RunMonitor
from haltwise.interfaces.scipy import RunCallback

START = np.array([-1.2, 1.0])
BOUNDS = [(-2.0, 2.0)] * 2


def residuals(x: Any) -> Any:
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def minimized(method: str, callback: RunCallback) -> Any:
    settings: dict[str, Any] = {} if method in ("Nelder-Mead", "Powell") else {"jac": rosen_der}
    return optimize.minimize(rosen, START, method=method, callback=callback, **settings)


CALLS: dict[str, Any] = {
    **{
        name: lambda callback, name=name: minimized(name, callback)
        for name in ("Nelder-Mead", "Powell", "CG", "BFGS", "L-BFGS-B", "SLSQP", "trust-constr")
    },
    "differential_evolution": lambda callback: optimize.differential_evolution(
        rosen, BOUNDS, callback=callback, rng=0
    ),
    "basinhopping": lambda callback: optimize.basinhopping(
        rosen, START, niter=20, callback=callback, rng=0
    ),
    "least_squares": lambda callback: optimize.least_squares(residuals, START, callback=callback),
}


@pytest.mark.filterwarnings("ignore:delta_grad")
@pytest.mark.parametrize("name", CALLS)
def test_it_ends_where_the_monitor_says(name: str) -> None:
    monitor = patience(0, min_points=4)  # which gives up whatever it sees
    result = CALLS[name](RunCallback(monitor))
    assert (monitor.steps, monitor.should_stop) == (4, True)
    assert monitor.curve.loss[0] >= monitor.curve.loss[-1]
    value = result.cost if name == "least_squares" else result.fun
    assert value <= monitor.curve.loss[0]


def test_another_minimization_is_a_run_of_its_own() -> None:
    callback = RunCallback(RunMonitor(price=0.5))
    steps = []
    for _ in range(2):
        result = optimize.minimize(rosen, START, jac=rosen_der, method="CG", callback=callback)
        assert callback.monitor.should_stop
        steps.append((result.nit, callback.monitor.steps))
    assert steps[0] == steps[1]
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        optimize.minimize(rosen, START, jac=rosen_der, method="CG", callback=twin)
        assert twin.monitor.steps == steps[0][1]


@pytest.mark.parametrize("name", ["TNC", "direct"])
def test_a_method_that_shows_no_value_is_refused(name: str) -> None:
    call: Any = {
        "TNC": lambda callback: minimized("TNC", callback),
        "direct": lambda callback: optimize.direct(rosen, BOUNDS, callback=callback),
    }[name]
    with pytest.raises(InputError, match=r"a point without its value.* such as L-BFGS-B"):
        call(RunCallback(patience(3)))
