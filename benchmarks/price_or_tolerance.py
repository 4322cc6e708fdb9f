"""Evaluations that a price, a learned stop or one of SciPy's tolerances takes for one excess loss.

Each stop has one number to set; it is tried on a grid, and evaluations are interpolated at the mean
excess asked for. So every tolerance is tuned for these very problems, which nobody can do in use.
"hindsight" knows all later losses: the fewest evaluations that any stop could take. The learned
stops have seen no problems of these families.

    python benchmarks/price_or_tolerance.py
    python benchmarks/price_or_tolerance.py --learned lbfgs=runs/stop-lbfgs
"""

import math
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

import haltwise
from haltwise.engines import Engine, engines
from haltwise.engines.hand_rule import RuleEngine
from haltwise.engines.process import EngineProcess
from haltwise.rollout import record_process
from haltwise.update_rules import Adam

PRICES = (-15, 4)
GRIDS = {"price": PRICES, "learned": PRICES, "gtol": (-15, 4), "ftol": (-27, -2), "xtol": (-18, 0)}
"""Powers of the cube root of ten."""
TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
ENGINES: dict[str, Engine] = {
    **{name: engines()[name] for name in ("newton", "gauss-newton", "lbfgs")},
    "adam": RuleEngine(Adam(0.1)),
}
LEARNED = {"gauss-newton": "stop-gauss-newton", "lbfgs": "stop-lbfgs", "adam": "stop-adam"}
"""Names of the halting models, by engine."""
_STEPS = 300


def families(number: int) -> dict[str, haltwise.FunctionBatch]:
    """Logistic regressions, plain and with columns of all scales, rates, two decays, and counts."""
    draw: dict[str, Any] = {"generator": torch.Generator().manual_seed(7), "dtype": torch.float64}

    def logistic(spread: float) -> haltwise.FunctionBatch:
        scale = (spread * torch.randn(number, 1, 8, **draw)).exp()
        x = torch.randn(number, 60, 8, **draw) * scale
        w = torch.randn(number, 8, 1, **draw) / scale.mT
        y = (torch.rand(number, 60, **draw) < (x @ w).squeeze(-1).sigmoid()).double()
        ridge = 10 ** (3 * torch.rand(number, **draw) - 2)

        def loss(w: Tensor, x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
            z = (w.unsqueeze(1) @ x.mT).squeeze(1)
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

    def two_decays() -> haltwise.FunctionBatch:
        t = 4 * torch.rand(number, 24, **draw)
        fast, slow = (torch.tensor([[1.0], [-1.0]]) + 0.4 * torch.randn(2, number, **draw)).exp()
        high, low = (0.3 * torch.randn(2, number, **draw)).exp()

        def value(p: Tensor, t: Tensor) -> Tensor:
            high, fast, low, slow = p.exp().unsqueeze(-1).unbind(1)
            return high * torch.exp(-fast * t) + low * torch.exp(-slow * t)

        truth = torch.stack((high, fast, low, slow), 1).log()
        y = value(truth, t) + 0.02 * torch.randn(number, 24, **draw)

        def residuals(p: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return 50 * (value(p, t) - y)

        start = torch.tensor([0.0, 0.5, 0.0, -0.5], dtype=torch.float64).repeat(number, 1)
        return haltwise.FunctionBatch(start, residuals=residuals, data={"t": t, "y": y})

    def counts() -> haltwise.FunctionBatch:
        x = torch.randn(number, 40, 5, **draw) / 2
        x[..., 0] = 1
        w = torch.randn(number, 5, 1, **draw) / 2
        level = 4 * torch.rand(number, 1, **draw) - 1  # from a third of a count to twenty
        y = torch.poisson(((x @ w).squeeze(-1) + level).exp(), draw["generator"])

        def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            z = (w.unsqueeze(1) @ x.mT).squeeze(1)
            return (z.exp() - y * z).sum(1) + w.square().sum(1) / 20

        start = torch.zeros(number, 5, dtype=torch.float64)
        return haltwise.FunctionBatch(start, loss, {"x": x, "y": y})

    return {
        "logistic": logistic(0.0),
        "logistic, badly scaled": logistic(1.0),
        "Michaelis-Menten": rates(),
        "two decays": two_decays(),
        "Poisson": counts(),
    }


class Case(NamedTuple):
    """Problems, an engine and the least losses that any engine reached, [B]."""

    problem: haltwise.FunctionBatch
    engine: Engine
    least: Tensor


def evaluations(case: Case, stop: str, learned: str | None) -> Any:
    """Mean evaluations at each of `TARGETS`, NaN outside of what the grid reaches."""
    points = []
    for power in range(*GRIDS[stop]):
        value = 10 ** (power / 3)
        setting: dict[str, Any] = {stop: value}
        if stop == "learned":
            setting = {"price": value, "stop": learned}
        found = haltwise.solve(case.problem, method=case.engine, max_steps=_STEPS, **setting)
        points.append((found.loss - case.least, found.num_gradients))
    return at_targets(points)


def in_hindsight(case: Case) -> Any:
    """The fewest mean evaluations, given all losses, at each of `TARGETS`."""
    recorded = record_process(EngineProcess(case.engine, case.problem), _STEPS)
    excess = recorded.excess - case.least.unsqueeze(1)
    steps = torch.arange(excess.shape[1])
    stops = [(steps + weight * excess).argmin(1) for weight in 10.0 ** np.arange(-1, 7, 0.25)]
    return at_targets([(excess.gather(1, at.unsqueeze(1)), at + 1) for at in stops])


def at_targets(points: list[tuple[Tensor, Tensor]]) -> Any:
    """Mean evaluations, interpolated in the logarithm of the mean excess."""
    means = [
        (math.log(excess.clamp_min(1e-16).mean().item()), spent.double().mean().item())
        for excess, spent in points
    ]
    excesses, counts = np.array(sorted(means)).T
    return np.interp(np.log(TARGETS), excesses, counts, left=np.nan, right=np.nan)


def ways(case: Case, label: str, learned: dict[str, str]) -> dict[str, Any]:
    """Evaluations at each of `TARGETS`, by stop."""
    unknown = np.full(len(TARGETS), np.nan)
    found = {
        stop: unknown
        if stop == "learned" and label not in learned
        else evaluations(case, stop, learned.get(label))
        for stop in GRIDS
    }
    return found | {"hindsight": in_hindsight(case)}


@click.command()
@click.option("--num-problems", default=600, show_default=True)
@click.option(
    "--engine", "wanted", multiple=True, default=tuple(ENGINES), help="Engines; may be repeated."
)
@click.option(
    "--learned", "own", multiple=True, metavar="ENGINE=RUN", help="Another halting model."
)
def main(num_problems: int, wanted: tuple[str, ...], own: tuple[str, ...]) -> None:
    """Print a Markdown table of mean evaluations."""
    columns = [*GRIDS, "hindsight"]
    click.echo("| engine | problems | mean excess | " + " | ".join(columns) + " |")
    click.echo("|---|---|---|" + "---|" * len(columns))
    learned = LEARNED | dict(each.split("=", 1) for each in own)
    for name, problem in families(num_problems).items():
        ends = [
            haltwise.solve(problem, method=method, gtol=1e-8, max_steps=1000).loss
            for method in ("newton", "lbfgs")
        ]
        least = torch.stack(ends).amin(0)
        for label in wanted:
            if ENGINES[label].refusal(problem) is not None:
                continue
            found = ways(Case(problem, ENGINES[label], least), label, learned)
            for row, target in enumerate(TARGETS):
                cells = " | ".join(f"{found[stop][row]:.2f}" for stop in columns)
                click.echo(f"| {label} | {name} | {target:g} | {cells} |")


if __name__ == "__main__":
    main()
