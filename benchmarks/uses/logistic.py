"""Logistic regression per group of a table: 10^5 groups of 60 rows, 8 parameters, ridge 0.5.

python benchmarks/uses/logistic.py --threads 1
"""

from typing import Any

import numpy as np
from race import Array, Way, command
from ways import Solve, bfgs_ways, haltwise_way, joblib_way

ROWS, DIM, RIDGE = 60, 8, 0.5


def simulate(number: int) -> dict[str, Array]:
    """Covariates [B, N, D] and responses [B, N] of groups whose effects are standard normal."""
    generator = np.random.default_rng(90210)
    x = generator.standard_normal((number, ROWS, DIM))
    effects = generator.standard_normal((number, DIM))
    mean = 1 / (1 + np.exp(-np.einsum("bnd,bd->bn", x, effects)))
    return {"x": x, "y": (generator.random((number, ROWS)) < mean).astype(float)}


def losses(params: Array, x: Array, y: Array) -> Array:
    """Negative log-likelihood plus ridge."""
    z = np.einsum("bnd,bd->bn", x, params)
    return (np.logaddexp(0, z) - y * z).sum(1) + RIDGE / 2 * (params**2).sum(1)


def torch_loss(params: Any, x: Any, y: Any) -> Any:
    """The same, as a user of Haltwise writes it."""
    import torch

    z = (params.unsqueeze(1) @ x.mT).squeeze(1)
    likelihood = torch.nn.functional.softplus(z) - y * z
    return likelihood.sum(1) + RIDGE / 2 * params.square().sum(1)


def irls(params: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """The same, told to be a function of linear predictors."""
    import torch

    import haltwise

    def unit_loss(z: Any, y: Any) -> Any:
        return torch.nn.functional.softplus(z) - y * z

    return haltwise.generalized_linear(unit_loss, RIDGE)(params, x=x, y=y)


def newton(data: dict[str, Array], steps: int = 8) -> Solve:
    """A batched Newton written for this loss, of a fixed number of steps."""
    import torch

    x, y = (torch.from_numpy(data[name]) for name in ("x", "y"))
    ridge = RIDGE * torch.eye(DIM, dtype=torch.float64)

    def solve(number: int) -> Array:
        a, b = x[:number], y[:number]
        params = torch.zeros(number, DIM, dtype=torch.float64)
        for _ in range(steps):
            mean = (params.unsqueeze(1) @ a.mT).squeeze(1).sigmoid()
            grad = ((mean - b).unsqueeze(1) @ a).squeeze(1) + RIDGE * params
            curvature = a.mT @ ((mean * (1 - mean)).unsqueeze(-1) * a) + ridge
            params = params - torch.linalg.solve(curvature, grad)
        return params.numpy()

    return solve


def scipy_one(start: Array, x: Array, y: Array) -> Array:
    """SciPy's L-BFGS-B with the gradient by hand."""
    from scipy.optimize import minimize

    def value(params: Array) -> tuple[float, Array]:
        z = x @ params
        loss = (np.logaddexp(0, z) - y * z).sum() + RIDGE / 2 * params @ params
        return loss, x.T @ (1 / (1 + np.exp(-z)) - y) + RIDGE * params

    found: Array = minimize(value, start, jac=True, method="L-BFGS-B").x
    return found


def jax_loss(params: Any, x: Any, y: Any) -> Any:
    """The same for one problem of JAX."""
    import jax.numpy as jnp

    z = x @ params
    return (jnp.logaddexp(0, z) - y * z).sum() + RIDGE / 2 * (params**2).sum()


def ways(problems: int, threads: int) -> tuple[list[Way], Any]:
    """All ways, and what judges them."""
    data = simulate(problems)
    start = np.zeros((problems, DIM))
    settings = {"method": "newton", "price": 1e-4}
    own = haltwise_way(start, data, {"method": "bfgs", "price": 1e-5}, loss=torch_loss)
    by_hand = haltwise_way(start, data, settings, derivatives=irls)
    found = [
        Way("haltwise, the loss alone", own, problems),
        Way("haltwise, generalized_linear", by_hand, problems),
        Way("torch, Newton by hand, 8 steps", newton(data), problems),
        *bfgs_ways(start, data, jax_loss),
        Way(
            "SciPy L-BFGS-B, joblib",
            joblib_way(start, data, scipy_one, threads),
            min(2000, problems),
        ),
    ]
    return found, lambda params: losses(params, **{k: v[: len(params)] for k, v in data.items()})


if __name__ == "__main__":
    command("logistic", ways, 100_000)
