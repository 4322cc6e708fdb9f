"""One function at a time, in the manner of `scipy.optimize.minimize`."""

import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.arrays import require_unmasked
from haltwise._core.errors import InputError, require
from haltwise._core.settings import require_flags, shown, whole_number
from haltwise.engines import Engine
from haltwise.interfaces.run_monitor import RunMonitor
from haltwise.interfaces.solve import solve
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.stop_rules import StopPolicy, StopRule
from haltwise.tasks import Observation, TaskBatch
from haltwise.update_rules import UpdateRule

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from scipy.optimize import OptimizeResult

__all__ = ["RunCallback", "minimize"]


def minimize(
    fun: Callable[..., Any],
    x0: "ArrayLike",
    args: Any = (),
    *,
    jac: Callable[..., Any] | bool | str | None = None,
    callback: Callable[..., Any] | None = None,
    optimizer: str | Path | OptimizerModel | None = None,
    stop: StopRule | StopPolicy | None = None,
    method: str | Engine | UpdateRule | None = None,
    price: float | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    xtol: float | None = None,
    maxiter: int | None = None,
    disp: bool = False,
    guard: bool = True,
    **unsupported: Any,
) -> "OptimizeResult":
    """Minimise a function of NumPy arrays, as far as that is worth its price.

    Also a `method` for SciPy: `scipy.optimize.minimize(fun, x0, jac=True,
    method=haltwise.minimize, options={"price": 1e-3})`. For many problems at once
    `haltwise.solve` is far quicker.

    Args:
        fun: `fun(x, *args)` gives the value, with `jac=True` the value and the gradient.
        x0: Where to start, shape [n]; all is computed in float64.
        args: More arguments of `fun` and `jac`; one that is no tuple stands for itself.
        jac: `jac(x, *args)` gives the gradient [n]; True if `fun` does; None or "2-point" for
            forward differences, which cost n + 1 values of `fun` each.
        callback: Called with each new x, or with an `OptimizeResult` (x and fun) if its one
            parameter is called `intermediate_result`; may raise `StopIteration`, and what is
            returned is the lowest of the points that it was called with, or without a `guard` the
            last. New are points lower than all before that have a gradient, and all that learned
            updates lead to.
        optimizer: As for `haltwise.solve`, which this calls; so all that follow. Without any of
            them L-BFGS runs to SciPy's tolerances, for functions of arrays give no second
            derivatives, with which BFGS begins.
        stop: When to stop.
        method: By which engine.
        price: What a gradient must earn.
        gtol: A tolerance of gradients.
        ftol: A tolerance of losses.
        xtol: A tolerance of steps.
        maxiter: Gradients at most; see `max_steps` of `haltwise.solve` if None.
        disp: Whether to print in the end what came of it.
        guard: As there.
        unsupported: Whatever else SciPy knows (bounds, constraints, hess, tol ...) is refused,
            unless it is None or empty.

    Returns:
        x, fun, jac (the gradient at x; None where none was evaluated there, as after the last
        update), success, status (an `Outcome`; 99 if the callback stopped it), message, nit
        (steps that led to x), nfev and njev. It is a success if it halted within a tolerance, or
        where the price pays for no more, see `haltwise.Solution.success`.

    Raises:
        InputError: An argument is no good, or SciPy is missing.

    Examples:
        >>> from scipy.optimize import rosen, rosen_der
        >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der)
        >>> result.message, bool(result.fun < 1e-10)
        ('Its gradient is within gtol = 1e-05', True)

        By a learned optimizer, as far as a gradient earns .01:

        >>> given = {"optimizer": "regression-10d", "price": 0.01}
        >>> result = minimize(lambda x: x @ x, [0.5] * 10, jac=lambda x: 2 * x, **given)
        >>> result.success, bool(result.fun < 0.1)
        (True, True)
    """
    try:
        from scipy.optimize import OptimizeResult
    except ImportError as error:
        raise InputError(
            "haltwise.minimize needs SciPy: pip install 'haltwise[scipy]' (haltwise.solve does "
            "without)"
        ) from error
    _refuse_unsupported(unsupported)
    require(callable(fun), f"fun must be a function, got {shown(fun)}")
    given = callback is None or callable(callback)
    require(given, f"callback must be a function, got {shown(callback)}")
    require_flags(disp=bool(disp) if isinstance(disp, int) else disp)  # SciPy takes 0 and 1, too
    objective = _Objective(fun, jac, args if isinstance(args, tuple) else (args,))
    start = np.atleast_1d(_array("x0", x0))
    require(
        start.ndim == 1 and start.size > 0,
        f"x0 must be a vector of real numbers, got shape {start.shape}",
    )
    maxiter = None if maxiter is None else whole_number("maxiter", maxiter)
    iterates = _Iterates(_teller(callback))
    batch = _FunctionOfArrays(torch.from_numpy(start).unsqueeze(0), objective, iterates)
    try:
        solution = solve(
            *(batch, optimizer, stop),
            method=method,
            price=price,
            gtol=gtol,
            ftol=ftol,
            xtol=xtol,
            max_steps=maxiter,
            guard=guard,
        )
        x, value = solution.params[0].numpy(), solution.loss.item()
        steps, status = int(solution.steps), int(solution.outcome)
        message = solution.why(0).replace("max_steps", "maxiter")
        success = bool(solution.success)
        if steps > 0:
            iterates.end(x, value)
    except _CallbackStop:
        found = iterates.lowest if guard else iterates.last
        assert found is not None
        x, value, steps = found
        # SciPy's own number and sentence.
        status, message, success = 99, "`callback` raised `StopIteration`.", False
    result = OptimizeResult(
        x=x,
        fun=value,
        jac=objective.gradient_at(x),
        success=success,
        status=status,
        message=f"{message[:1].upper()}{message[1:]}",
        nit=steps,
        nfev=objective.num_values,
        njev=objective.num_gradients,
    )
    if disp:
        print(f"{result.message}.\n{_summary(result)}")  # noqa: T201 - SciPy's disp
    return result


def _refuse_unsupported(unsupported: dict[str, Any]) -> None:
    """Refuse what else SciPy knows, unless it is None or empty."""
    options = unsupported.pop("options", None)
    require(
        not options,
        "haltwise.minimize takes what SciPy takes as options as arguments of its own; write "
        f"{', '.join(f'{name}={setting!r}' for name, setting in dict(options or {}).items())}",
    )
    for name, setting in unsupported.items():
        require(
            setting is None
            or setting is False
            or (isinstance(setting, tuple | list | dict) and not setting),
            f"haltwise.minimize knows no {name}; leave it out, or choose another method of "
            "scipy.optimize.minimize"
            if name != "tol"
            else "haltwise.minimize has a tolerance for each thing, and a price: give gtol, ftol, "
            "xtol or price, and leave tol out",
        )


def _summary(result: "OptimizeResult") -> str:
    """The figures that SciPy's own methods print."""
    rows = {
        "Current function value": f"{result.fun:.6f}",
        "Iterations": result.nit,
        "Function evaluations": result.nfev,
        "Gradient evaluations": result.njev,
    }
    return "\n".join(f"         {name}: {value}" for name, value in rows.items())


@final
class RunCallback:
    """A callback of `scipy.optimize` that ends the minimization where it is given up.

    The value of the function is the metric, and cost is counted in iterations. It serves all
    methods of `scipy.optimize.minimize` that show a callback this value, which TNC does not;
    `least_squares`, whose cost is the value; `differential_evolution`, `basinhopping` and
    `dual_annealing`. SciPy returns what it has; its message says that the callback ended it, which
    most methods count as no success, and `monitor.reason` says why.

    Args:
        monitor: When to give up. What follows a minimization that was given up is a run of its own;
            where one ended by itself, call `monitor.start()` before the next.

    Raises:
        InputError: SciPy showed the callback no value.

    Examples:
        >>> from haltwise.curves.rule import CurveRule
        >>> class StepGain(CurveRule):
        ...     def score(self, curve):
        ...         return -np.diff(curve.loss, prepend=np.inf)
        >>> monitor = RunMonitor(StepGain(), level=1e-3)
        >>> from scipy.optimize import minimize, rosen
        >>> result = minimize(rosen, [-1.2, 1.0], method="L-BFGS-B", callback=RunCallback(monitor))
        >>> monitor.should_stop, result.message
        (True, '`callback` raised `StopIteration`.')
    """

    def __init__(self, monitor: RunMonitor) -> None:
        self.monitor = monitor
        self._ended = False
        # Only to a callback of just this argument do the methods of `minimize` show the value.
        parameter = inspect.Parameter(
            "intermediate_result", inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        self.__signature__ = inspect.Signature([parameter])

    def __repr__(self) -> str:
        return f"RunCallback({self.monitor})"

    def __call__(self, intermediate_result: "OptimizeResult", *others: Any) -> bool:
        if self._ended:  # and so this is another minimization
            self.monitor.start()
        # Of least squares `fun` are the residuals; others are given the point and its value.
        result: Any = intermediate_result
        values = others or [getattr(result, n) for n in ("cost", "fun") if hasattr(result, n)]
        require(
            len(values) > 0,
            "SciPy showed the callback a point without its value, as TNC and direct do; choose "
            "another method, such as L-BFGS-B",
        )
        self.monitor.update(values[0])
        self._ended = self.monitor.should_stop
        if self._ended and not others:
            raise StopIteration
        return self._ended


@final
class _Objective:
    """A function of arrays and its gradient, counted."""

    def __init__(
        self,
        fun: Callable[..., Any],
        jac: Callable[..., Any] | bool | str | None,
        args: tuple[Any, ...],
    ) -> None:
        require(
            callable(jac) or jac in (None, True, False, "2-point"),
            f"jac must be a function, True, None or '2-point', got {jac!r}",
        )
        self._fun, self._jac, self._args = fun, jac, args
        self.num_values = self.num_gradients = 0
        self._kept: list[_Evaluated] = []

    def value(self, x: "NDArray[np.float64]") -> float:
        self.num_values += 1
        found = self._fun(x.copy(), *self._args)
        return _number(found[0] if self._jac is True else found)

    def value_and_gradient(self, x: "NDArray[np.float64]") -> tuple[float, "NDArray[np.float64]"]:
        if self._jac is True:
            self.num_values += 1
            found = self._fun(x.copy(), *self._args)
            require(
                isinstance(found, tuple | list) and len(found) == 2,
                "with jac=True fun must return the value and the gradient, got "
                + type(found).__name__,
            )
            value, gradient = found
        elif callable(self._jac):
            value, gradient = self.value(x), self._jac(x.copy(), *self._args)
        else:
            from scipy.optimize import approx_fprime

            value, gradient = self.value(x), approx_fprime(x, self.value)
        self.num_gradients += 1
        gradient = np.atleast_1d(_array("the gradient", gradient))  # of one variable, SciPy's way
        require(
            gradient.shape == x.shape,
            f"the gradient must have the shape of x, {x.shape}, got {gradient.shape}",
        )
        self._keep(_Evaluated(x.copy(), _number(value), gradient))
        return self._kept[-1].value, gradient

    def _keep(self, new: "_Evaluated") -> None:
        """Keep the points of which one is returned: the start, the lowest and the latest two."""
        first, lowest, *latest = self._kept or (new, new)
        is_lower = new.value < lowest.value or math.isnan(lowest.value)
        if is_lower and np.isfinite(new.gradient).all():
            lowest = new
        self._kept = [first, lowest, *latest[-1:], new]

    def gradient_at(self, x: "NDArray[np.float64]") -> "NDArray[np.float64] | None":
        """The gradient that was evaluated at x, if that is one of those kept."""
        bits = x.tobytes()  # NaN equals itself there
        return next((each.gradient for each in self._kept if each.x.tobytes() == bits), None)


class _Evaluated(NamedTuple):
    """A point with its value and gradient."""

    x: "NDArray[np.float64]"
    value: float
    gradient: "NDArray[np.float64]"


def _array(what: str, value: Any) -> "NDArray[np.float64]":
    """A copy of real numbers as float64."""
    require_unmasked(value, what)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must hold real numbers: {error}") from error
    require(
        array.dtype.kind in "biuf",
        f"{what} must hold real numbers, got shape {array.shape} of {array.dtype}",
    )
    return array.astype(np.float64)


def _number(value: Any) -> float:
    array = _array("the value of fun", value)
    require(array.size == 1, f"fun must return one real number, got shape {array.shape}")
    return float(array.item())


class _Iterate(NamedTuple):
    """A point, its value, and how many a callback was told of by then."""

    x: "NDArray[np.float64]"
    value: float
    num: int


@final
class _Iterates:
    """Which of the points that are evaluated a callback is told of.

    An engine tries points that it may not take; it takes those that lower the loss and have a
    gradient from which to go on.

    Attributes:
        lowest: The point of the lowest value among the start and those told of.
        last: The last of them.
    """

    def __init__(self, tell: Callable[["NDArray[np.float64]", float], None]) -> None:
        self._tell = tell
        self._told: set[bytes] = set()
        self._num = 0
        self.lowest: _Iterate | None = None
        self.last: _Iterate | None = None

    def see(
        self, x: "NDArray[np.float64]", value: float, *, is_update: bool, is_sound: bool
    ) -> None:
        """A point was evaluated; the first one is the start."""
        if self.lowest is None:
            self._note(x, value)
        elif is_update or (is_sound and self._is_lower(value)):
            self._report(x, value)

    def end(self, x: "NDArray[np.float64]", value: float) -> None:
        """A point other than the start is returned, which may not have been told of."""
        if _digest(x) not in self._told:
            self._report(x, value)

    def _report(self, x: "NDArray[np.float64]", value: float) -> None:
        self._num += 1
        self._told.add(_digest(x))
        self._note(x, value)
        self._tell(x, value)

    def _note(self, x: "NDArray[np.float64]", value: float) -> None:
        self.last = _Iterate(x.copy(), value, self._num)
        if self.lowest is None or self._is_lower(value):
            self.lowest = self.last

    def _is_lower(self, value: float) -> bool:
        assert self.lowest is not None
        return value < self.lowest.value or math.isnan(self.lowest.value)


def _digest(x: "NDArray[np.float64]") -> bytes:
    """By which one of many points is known, without being kept."""
    return hashlib.blake2b(x.tobytes(), digest_size=16).digest()


@final
@dataclass(frozen=True, eq=False)
class _FunctionOfArrays(TaskBatch):
    """A batch of one problem."""

    objective: _Objective
    iterates: _Iterates

    @property
    def reference_loss(self) -> Tensor:
        return self.start.new_zeros(1)

    def observe(self, params: Tensor, step: int) -> Observation:
        x = params[0].numpy()
        value, gradient = self.objective.value_and_gradient(x)
        is_sound = math.isfinite(value) and bool(np.isfinite(gradient).all())
        self.iterates.see(x, value, is_update=step > 0, is_sound=is_sound)
        return Observation(params.new_tensor([value]), torch.from_numpy(gradient).unsqueeze(0))

    def observe_loss(self, params: Tensor, step: int) -> Tensor:
        return params.new_tensor([self.objective.value(params[0].numpy())])


@final
class _CallbackStop(Exception):  # noqa: N818
    """The callback raised `StopIteration`."""


def _teller(callback: Callable[..., Any] | None) -> Callable[["NDArray[np.float64]", float], None]:
    """What tells SciPy's kind of callback of an iterate."""
    if callback is None:
        return lambda *_: None
    try:
        whole = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # one of C tells no names
        whole = False

    def tell(x: "NDArray[np.float64]", value: float) -> None:
        from scipy.optimize import OptimizeResult

        try:
            if whole:
                callback(intermediate_result=OptimizeResult(x=x.copy(), fun=value))
            else:
                callback(x.copy())
        except StopIteration:
            raise _CallbackStop from None

    return tell
