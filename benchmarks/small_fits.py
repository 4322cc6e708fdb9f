"""Many logistic regressions at once: `haltwise.solve` against what its users would write instead.

60 observations, 8 coefficients and a ridge of 0.5 each, in float64. Ways of solving them run in
turn, A B C A B C ..., and are compared round by round: on a machine that is shared, a ratio's
median holds where seconds do not. Of each way the 99th percentile of the excess loss is shown,
above the minimum that twelve steps of Newton find. JAX (optimistix, jaxopt) and SciPy with joblib
are tried where they are installed.

    taskset -c 0 python benchmarks/small_fits.py --threads 1
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

import haltwise

ROWS, DIM, RIDGE = 60, 8, 0.5
Way = Callable[[], Any]


def make(number: int) -> tuple[Tensor, Tensor]:
    """Inputs [B, 60, 8] and answers [B, 60]."""
    generator = torch.Generator().manual_seed(90210)
    draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    x, w = torch.randn(number, ROWS, DIM, **draw), torch.randn(number, DIM, 1, **draw)
    chance = (x @ w).squeeze(-1).sigmoid()
    return x, (torch.rand(number, ROWS, **draw) < chance).double()


def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihoods with a ridge, [B]."""
    z = (w.unsqueeze(1) @ x.mT).squeeze(1)
    return (softplus(z) - y * z).sum(1) + RIDGE / 2 * w.square().sum(1)


def derivatives(w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and Hessian: what a user writes for speed."""
    z = (w.unsqueeze(1) @ x.mT).squeeze(1)
    mean = z.sigmoid()
    value = (softplus(z) - y * z).sum(1) + RIDGE / 2 * w.square().sum(1)
    grad = ((mean - y).unsqueeze(1) @ x).squeeze(1) + RIDGE * w
    hessian = x.mT @ ((mean * (1 - mean)).unsqueeze(-1) * x)
    hessian.diagonal(dim1=1, dim2=2).add_(RIDGE)
    return value, grad, hessian


def newton(x: Tensor, y: Tensor, num_steps: int) -> Tensor:
    """Newton's method by hand, a fixed number of full steps."""
    w, ridge = x.new_zeros(len(x), DIM), RIDGE * torch.eye(DIM, dtype=x.dtype)
    for _ in range(num_steps):
        mean = (w.unsqueeze(1) @ x.mT).squeeze(1).sigmoid()
        grad = ((mean - y).unsqueeze(1) @ x).squeeze(1) + RIDGE * w
        hessian = x.mT @ ((mean * (1 - mean)).unsqueeze(-1) * x) + ridge
        w = w - torch.linalg.solve(hessian, grad)
    return w


def adam(x: Tensor, y: Tensor, num_steps: int) -> Tensor:
    """Adam by hand, a fixed number of steps at a rate of 0.3."""
    w = x.new_zeros(len(x), DIM, requires_grad=True)
    optimizer = torch.optim.Adam([w], 0.3)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(w, x, y).sum().backward()
        optimizer.step()
    return w.detach()


def ours(x: Tensor, y: Tensor) -> dict[str, Way]:
    """Ways of this package."""
    start, data = x.new_zeros(len(x), DIM), {"x": x, "y": y}
    plain = haltwise.FunctionBatch(start, loss, data)
    given = haltwise.FunctionBatch(start, loss, data, derivatives=derivatives)
    unit_loss = haltwise.generalized_linear(lambda z, y: softplus(z) - y * z, RIDGE)
    linear = haltwise.FunctionBatch(start, derivatives=unit_loss, data=data)
    solved: dict[str, tuple[haltwise.FunctionBatch, dict[str, Any]]] = {
        "haltwise newton, derivatives given": (given, {"method": "newton"}),
        "haltwise newton, given, price 1e-2": (given, {"method": "newton", "price": 1e-2}),
        "haltwise newton, generalized_linear": (linear, {"method": "newton"}),
        "haltwise newton, automatic": (plain, {"method": "newton"}),
        "haltwise lbfgs": (plain, {"method": "lbfgs"}),
    }
    return {
        name: lambda problem=problem, how=how: haltwise.solve(problem, **how).params
        for name, (problem, how) in solved.items()
    }


def by_torch(x: Tensor, y: Tensor) -> dict[str, Way]:
    """Loops by hand."""

    def in_chunks() -> Tensor:
        parts = zip(x.split(1000), y.split(1000), strict=True)
        return torch.cat([newton(*part, 8) for part in parts])

    return {
        "torch newton x 8": lambda: newton(x, y, 8),
        "torch newton x 8, chunks of 1,000": in_chunks,
        "torch adam x 60": lambda: adam(x, y, 60),
    }


def by_scipy(x: Tensor, y: Tensor, threads: int) -> dict[str, Way]:
    """One problem at a time, on all cores."""
    from joblib import Parallel, delayed
    from scipy.optimize import minimize

    inputs, answers = x.numpy(), y.numpy()

    def solve(first: int, last: int) -> list[Any]:
        found = []
        for a, b in zip(inputs[first:last], answers[first:last], strict=True):

            def value(w: Any, a: Any = a, b: Any = b) -> tuple[Any, Any]:
                z = a @ w
                total = (np.logaddexp(0, z) - b * z).sum() + RIDGE / 2 * w @ w
                return total, a.T @ (1 / (1 + np.exp(-z)) - b) + RIDGE * w

            found.append(minimize(value, np.zeros(DIM), jac=True, method="L-BFGS-B").x)
        return found

    def run() -> Tensor:
        bounds = range(0, len(inputs), 500)
        parts = Parallel(threads)(delayed(solve)(first, first + 500) for first in bounds)
        return torch.from_numpy(np.array([w for part in parts for w in part]))

    return {"scipy L-BFGS-B, joblib": run}


def by_jax(x: Tensor, y: Tensor) -> dict[str, Way]:
    """Compiled solvers under `vmap`, compilation not counted."""
    import jax
    import jax.numpy as jnp
    import jaxopt
    import optimistix

    jax.config.update("jax_enable_x64", True)
    inputs, answers = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())

    def value(w: Any, data: Any) -> Any:
        a, b = data
        z = a @ w
        return (jnp.logaddexp(0, z) - b * z).sum() + RIDGE / 2 * (w * w).sum()

    def bfgs(tol: float) -> Way:
        solver = optimistix.BFGS(rtol=tol, atol=tol)

        def one(a: Any, b: Any) -> Any:
            start = jnp.zeros(DIM)
            return optimistix.minimise(
                value, solver, start, args=(a, b), max_steps=200, throw=False
            ).value

        compiled = jax.jit(jax.vmap(one))
        return lambda: torch.from_numpy(np.array(compiled(inputs, answers)))

    lbfgs = jaxopt.LBFGS(fun=lambda w, a, b: value(w, (a, b)), maxiter=100, tol=1e-5)
    compiled = jax.jit(jax.vmap(lambda a, b: lbfgs.run(jnp.zeros(DIM), a, b).params))
    return {
        "optimistix BFGS, vmap, 1e-3": bfgs(1e-3),
        "optimistix BFGS, vmap, 1e-6": bfgs(1e-6),
        "jaxopt L-BFGS, vmap, 1e-5": lambda: torch.from_numpy(np.array(compiled(inputs, answers))),
    }


@click.command()
@click.option("--num-problems", default=10_000, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--peers/--no-peers", default=True, show_default=True, help="SciPy and JAX, too.")
def main(num_problems: int, threads: int, rounds: int, peers: bool) -> None:
    """Print a Markdown table of seconds, ratios to the first way, and excess losses."""
    torch.set_num_threads(threads)
    x, y = make(num_problems)
    ways = {**ours(x, y), **by_torch(x, y)}
    for name, make_ways in (
        ("SciPy and joblib", lambda: by_scipy(x, y, threads)),
        ("JAX, optimistix and jaxopt", lambda: by_jax(x, y)),
    ):
        try:
            ways |= make_ways() if peers else {}
        except ImportError:
            click.echo(f"without {name}, which are not installed\n")
    least = loss(newton(x, y, 12), x, y)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    excess: dict[str, float] = {}
    for number in range(rounds + 1):  # the first is not counted
        for name, way in ways.items():
            began = time.perf_counter()
            found = way()
            if number:
                seconds[name].append(time.perf_counter() - began)
            excess[name] = (loss(found, x, y) - least).quantile(0.99).item()
    first = next(iter(seconds.values()))
    click.echo(f"{num_problems:,} logistic regressions, {ROWS} x {DIM}, threads: {threads}\n")
    click.echo("| way | seconds | times the first | excess, 99th percentile |\n|---|---|---|---|")
    for name, own in seconds.items():
        ratio = median(theirs / mine for theirs, mine in zip(own, first, strict=True))
        click.echo(f"| {name} | {median(own):.3f} | {ratio:.2f} | {excess[name]:.0e} |")


if __name__ == "__main__":
    main()
