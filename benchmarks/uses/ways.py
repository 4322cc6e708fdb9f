"""Ways to solve B problems that every use has: ours, SciPy with joblib, JAX under `vmap`.

Data are NumPy arrays, each with the problems along its first dimension; a loss takes parameters and
these. Each way is a function of the number of problems to solve, the first of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from race import Array, Way

Solve = Callable[[int], Array]
Data = Mapping[str, Array]


def haltwise_way(start: Array, data: Data, settings: Any, **problem: Any) -> Solve:
    """`haltwise.solve` of a `haltwise.FunctionBatch`, from arrays to arrays."""
    import haltwise

    def solve(number: int) -> Array:
        part = {name: value[:number] for name, value in data.items()}
        batch = haltwise.FunctionBatch(start[:number], data=part, **problem)
        found: Array = haltwise.solve(batch, **settings).params
        return found

    return solve


def joblib_way(start: Array, data: Data, one: Callable[..., Array], threads: int) -> Solve:
    """`one(start, **data)` on each problem, on all cores by joblib."""
    from joblib import Parallel, delayed

    def solve(number: int) -> Array:
        jobs = (
            delayed(one)(start[i], **{name: value[i] for name, value in data.items()})
            for i in range(number)
        )
        return np.array(Parallel(threads, batch_size=max(1, number // (4 * threads)))(jobs))

    return solve


def vmap_way(start: Array, data: Data, one: Callable[..., Any]) -> Solve:
    """`one(start, **data)` of JAX on all problems by `vmap`, compiled before it is timed."""
    import jax

    jax.config.update("jax_enable_x64", val=True)
    run = jax.jit(jax.vmap(lambda begun, rest: one(begun, **rest)))

    def solve(number: int) -> Array:
        part = {name: value[:number] for name, value in data.items()}
        return np.asarray(run(start[:number], part).block_until_ready())

    return solve


def bfgs(loss: Callable[..., Any], tolerance: float) -> Callable[..., Any]:
    """Optimistix's BFGS on `loss(params, **data)` of one problem."""
    import optimistix

    solver = optimistix.BFGS(rtol=tolerance, atol=tolerance)

    def one(start: Any, **data: Any) -> Any:
        return optimistix.minimise(
            lambda params, _: loss(params, **data), solver, start, max_steps=256, throw=False
        ).value

    return one


def bfgs_ways(start: Array, data: Data, loss: Callable[..., Any]) -> list[Way]:
    """All problems by Optimistix's BFGS under `vmap`, to loose and sharp tolerances."""
    return [
        Way(
            f"optimistix BFGS {tolerance:g}, vmap",
            vmap_way(start, data, bfgs(loss, tolerance)),
            len(start),
        )
        for tolerance in (1e-3, 1e-4, 1e-6)
    ]
