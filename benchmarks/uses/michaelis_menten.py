"""Michaelis-Menten fits: 10^5 enzymes, each measured at 12 concentrations.

python benchmarks/uses/michaelis_menten.py --threads 1
"""

from typing import Any

import numpy as np
from race import Array, Way, command
from ways import Solve, haltwise_way, joblib_way, vmap_way

POINTS = 12


def simulate(number: int) -> dict[str, Array]:
    """Concentrations and velocities, each [B, N], with noise of 3 % of the largest velocity."""
    generator = np.random.default_rng(5)
    largest = generator.lognormal(1, 0.7, (number, 1))
    half = generator.lognormal(0, 1, (number, 1))
    substrate = np.tile(0.05 * 2.0 ** np.arange(POINTS), (number, 1))
    velocity = largest * substrate / (half + substrate)
    noise = 0.03 * largest * generator.standard_normal((number, POINTS))
    return {"substrate": substrate, "velocity": velocity + noise}


def start_of(data: dict[str, Array]) -> Array:
    """The largest velocity seen, and the concentration nearest to half of it."""
    largest = data["velocity"].max(1, keepdims=True)
    nearest = np.abs(data["velocity"] - largest / 2).argmin(1)
    return np.column_stack((largest, np.take_along_axis(data["substrate"], nearest[:, None], 1)))


def losses(params: Array, substrate: Array, velocity: Array) -> Array:
    """Half the sum of squares, in units of the largest velocity seen."""
    largest, half = params[:, :1], params[:, 1:]
    residual = (velocity - largest * substrate / (half + substrate)) / velocity.max(
        1, keepdims=True
    )
    return np.where(half[:, 0] > 0, (residual**2).sum(1) / 2, np.inf)


def torch_residuals(params: dict[str, Any], substrate: Any, velocity: Any) -> Any:
    """What a user of Haltwise writes."""
    largest, half = (params[name].unsqueeze(1) for name in ("largest", "half"))
    return velocity - largest * substrate / (half + substrate)


def named(start: Array, data: dict[str, Array]) -> Solve:
    """`haltwise.solve` of named parameters, both above 0, by Levenberg-Marquardt."""
    import haltwise

    def solve(number: int) -> Array:
        batch = haltwise.FunctionBatch(
            {"largest": start[:number, 0], "half": start[:number, 1]},
            residuals=torch_residuals,
            data={name: value[:number] for name, value in data.items()},
            bounds=haltwise.positive(),
        )
        found = haltwise.solve(batch, method="auto").params
        return np.column_stack((found["largest"], found["half"]))

    return solve


def derivatives(params: Any, substrate: Any, velocity: Any) -> tuple[Any, Any]:
    """Residuals and their Jacobian by hand, in logarithms."""
    import torch

    largest, half = params.exp().unsqueeze(1).unbind(2)
    total = half + substrate
    fitted = largest * substrate / total
    return velocity - fitted, torch.stack((-fitted, fitted * half / total), 2)


def by_hand(start: Array, data: dict[str, Array]) -> Solve:
    """`haltwise.solve` of logarithms, the Jacobian given."""
    solve = haltwise_way(
        np.log(start), data, {"method": "gauss-newton"}, residuals=_only(0), derivatives=derivatives
    )
    return lambda number: np.exp(solve(number))


def _only(place: int) -> Any:
    return lambda *args, **data: derivatives(*args, **data)[place]


def gauss_newton(start: Array, data: dict[str, Array], steps: int = 12) -> Solve:
    """A batched Levenberg-Marquardt written for this model: a fixed number of steps."""
    import torch

    substrate, velocity, begun = (
        torch.from_numpy(v) for v in (data["substrate"], data["velocity"], np.log(start))
    )

    def solve(number: int) -> Array:
        params, given = begun[:number].clone(), (substrate[:number], velocity[:number])
        damping = torch.full((number, 1, 1), 1e-2, dtype=params.dtype)
        residual, jacobian = derivatives(params, *given)
        for _ in range(steps):
            normal = jacobian.mT @ jacobian
            damped = normal + damping * torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
            move = torch.linalg.solve(damped, (residual.unsqueeze(1) @ jacobian).squeeze(1))
            trial = derivatives(params - move, *given)
            better = trial[0].square().sum(1) < residual.square().sum(1)
            params = torch.where(better.unsqueeze(1), params - move, params)
            residual = torch.where(better.unsqueeze(1), trial[0], residual)
            jacobian = torch.where(better.view(-1, 1, 1), trial[1], jacobian)
            damping = torch.where(better.view(-1, 1, 1), damping / 10, damping * 10)
        return params.exp().numpy()

    return solve


def scipy_one(start: Array, substrate: Array, velocity: Array) -> Array:
    """`scipy.optimize.curve_fit` as its users call it."""
    from scipy.optimize import curve_fit

    def model(s: Array, largest: float, half: float) -> Array:
        return largest * s / (half + s)

    found: Array = curve_fit(model, substrate, velocity, start)[0]
    return found


def jax_one(start: Any, substrate: Any, velocity: Any) -> Any:
    """Optimistix's Levenberg-Marquardt on logarithms."""
    import jax.numpy as jnp
    import optimistix

    def residuals(params: Any, _: Any) -> Any:
        largest, half = jnp.exp(params)
        return velocity - largest * substrate / (half + substrate)

    solver = optimistix.LevenbergMarquardt(rtol=1e-6, atol=1e-6)
    found = optimistix.least_squares(
        residuals, solver, jnp.log(start), max_steps=256, throw=False
    ).value
    return jnp.exp(found)


def ways(problems: int, threads: int) -> tuple[list[Way], Any]:
    """All ways, and what judges them."""
    data = simulate(problems)
    start = start_of(data)
    found = [
        Way("haltwise, residuals alone", named(start, data), problems),
        Way("haltwise, Jacobian given", by_hand(start, data), problems),
        Way("torch, LM by hand, 12 steps", gauss_newton(start, data), problems),
        Way("optimistix LM 1e-6, vmap", vmap_way(start, data, jax_one), problems),
        Way(
            "SciPy curve_fit, joblib",
            joblib_way(start, data, scipy_one, threads),
            min(2000, problems),
        ),
    ]
    return found, lambda params: losses(params, **{k: v[: len(params)] for k, v in data.items()})


if __name__ == "__main__":
    command("michaelis-menten", ways, 100_000)
