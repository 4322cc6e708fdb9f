"""Evaluations that a price, or one of SciPy's tolerances, takes for the same mean excess loss.

Each stop has one number to set; it is tried on a grid, and evaluations are interpolated at the mean
excess asked for. So every tolerance is tuned for these very problems, which nobody can do in use.

    python benchmarks/price_or_tolerance.py
"""

import math
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

import haltwise
from haltwise.update_rules import Adam

GRIDS = {"price": (-15, 2), "gtol": (-15, 4), "ftol": (-27, -2), "xtol": (-18, 0)}
"""Powers of the cube root of ten."""
TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
ENGINES: dict[str, Any] = {"newton": "newton", "lbfgs": "lbfgs", "adam": Adam(0.1)}


def families(number: int) -> dict[str, haltwise.FunctionBatch]:
    """Logistic regressions, plain and with columns of all scales, and Michaelis-Menten rates."""
    draw: dict[str, Any] = {"generator": torch.Generator().manual_seed(7), "dtype": torch.float64}

    def logistic(spread: float) -> haltwise.FunctionBatch:
        scale = (spread * torch.randn(number, 1, 8, **draw)).exp()
        x = torch.randn(number, 60, 8, **draw) * scale
        w = torch.randn(number, 8, 1, **draw) / scale.mT
        y = (torch.rand(number, 60, **draw) < (x @ w).squeeze(-1).sigmoid()).double()
        ridge = 10 ** (3 * torch.rand(number, **draw) - 2)

        def loss(w: Tensor, x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
            z = (x @ w.unsqueeze(-1)).squeeze(-1)
            return (softplus(z) - y * z).sum(1) + ridge / 2 * w.square().sum(1)

        start = torch.zeros(number, 8, dtype=torch.float64)
        return haltwise.FunctionBatch(start, loss, {"x": x, "y": y, "ridge": ridge})

    def rates() -> haltwise.FunctionBatch:
        s = (4 * torch.rand(number, 12, **draw) - 1).exp()
        top, half = (0.5 * torch.randn(2, number, 1, **draw)).exp()
        v = top * s / (half + s) + 0.1 * torch.randn(number, 12, **draw)

        def residuals(p: Tensor, s: Tensor, v: Tensor) -> Tensor:
            top, half = p.exp().unsqueeze(-1).unbind(1)
            return 10 * (top * s / (half + s) - v)

        start = torch.zeros(number, 2, dtype=torch.float64)
        return haltwise.FunctionBatch(start, residuals=residuals, data={"s": s, "v": v})

    return {
        "logistic": logistic(0.0),
        "logistic, badly scaled": logistic(1.0),
        "Michaelis-Menten": rates(),
    }


def evaluations(problem: haltwise.FunctionBatch, engine: Any, least: Tensor, stop: str) -> Any:
    """Mean evaluations at each of `TARGETS`, NaN outside of what the grid reaches."""
    points = []
    for power in range(*GRIDS[stop]):
        setting: dict[str, Any] = {stop: 10 ** (power / 3)}
        found = haltwise.solve(problem, method=engine, max_steps=300, **setting)
        excess = (found.loss - least).clamp_min(1e-16).mean().item()
        points.append((math.log(excess), found.num_gradients.double().mean().item()))
    excesses, counts = np.array(sorted(points)).T
    wanted = np.log(TARGETS)
    return np.interp(wanted, excesses, counts, left=np.nan, right=np.nan)


@click.command()
@click.option("--num-problems", default=600, show_default=True)
def main(num_problems: int) -> None:
    """Print a Markdown table of mean evaluations."""
    click.echo("| engine | problems | mean excess | " + " | ".join(GRIDS) + " |")
    click.echo("|---|---|---|" + "---|" * len(GRIDS))
    for name, problem in families(num_problems).items():
        ends = [
            haltwise.solve(problem, method=method, gtol=1e-8, max_steps=1000).loss
            for method in ("newton", "lbfgs")
        ]
        least = torch.stack(ends).amin(0)
        for label, engine in ENGINES.items():
            found = {stop: evaluations(problem, engine, least, stop) for stop in GRIDS}
            for row, target in enumerate(TARGETS):
                cells = " | ".join(f"{counts[row]:.2f}" for counts in found.values())
                click.echo(f"| {label} | {name} | {target:g} | {cells} |")


if __name__ == "__main__":
    main()
