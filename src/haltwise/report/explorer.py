"""The explorer: two-parameter problems seen being solved, at any price, on one page."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise._core.random import stream
from haltwise.halting.methods import HaltingMethod
from haltwise.halting.session import HaltingSession
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.processes.trajectory import Trajectory
from haltwise.report.page import render, slug
from haltwise.rollout.record import record
from haltwise.stop_rules import CostUnit, costs, returned_steps
from haltwise.tasks.base import TaskBatch, TaskFamily

__all__ = ["explore", "write_explorer"]

_NUM_PRICES, _GRID = 21, 56
_DECADES = 7.0  # below the highest loss drawn, all contours are one colour
_PANELS = {
    "path": "Contours of log₁₀ of the excess loss, in units of the loss; a star is returned.",
    "loss": "Excess loss after t updates, alone and with the price of the steps; the line marks "
    "the stop.",
    "posterior": "q(t|x,T) with the horizon T at the present step: what is left falls on T. The "
    "hazard is the probability of stopping now, given that one has come this far.",
    "forecast": "What one more step is forecast to gain, in prices, and what it brought; below 1 "
    "it is not worth its price. The axis ends at 10 prices.",
}


def write_explorer(
    model: OptimizerModel,
    family: TaskFamily,
    path: Path,
    *,
    name: str,
    family_name: str,
    seed: int = 2026,
    num_problems: int = 5,
    num_steps: int | None = None,
) -> Path:
    """Write one HTML page on which problems are solved step by step.

    Args:
        model: An optimizer model that halts, by whatever method.
        family: Of problems with two parameters.
        path: Where the page goes; it holds everything and makes no request.
        name: Of the model, for the page.
        family_name: For the page.
        seed: Of the problems.
        num_problems: How many there are to choose from, 1 to 20.
        num_steps: T, steps drawn; the model's horizon if None.

    Returns:
        `path`.

    Raises:
        InputError: The problems have not two parameters, the model does not halt, no problem stays
            finite, or the page cannot be written.
    """
    horizon = model.card.horizon if num_steps is None else num_steps
    generator = stream(seed, "explore")
    document = explore(model, family, generator, num_problems=num_problems, num_steps=horizon)
    document |= {"optimizer": name, "family": family_name, "seed": seed}
    document["data"] = _downloads(document, slug(f"{name}-{family_name}-{seed}"))
    panels = {
        key: note for key, note in _PANELS.items() if key != "forecast" or _forecasts(document)
    }
    page = render("explorer", title=f"{name} on {family_name}", embedded=document, panels=panels)
    write_atomically(path, page.encode())
    return path


def explore(
    model: OptimizerModel,
    family: TaskFamily,
    generator: torch.Generator,
    *,
    num_problems: int,
    num_steps: int,
) -> dict[str, Any]:
    """What the explorer draws, as JSON values.

    Decisions fall with the gradient at theta_t in hand and updates are counted, as in the thesis,
    so that the posterior, the forecast and the loss share their steps.

    Args:
        model: An optimizer model that halts.
        family: Of problems with two parameters.
        generator: Draws the problems.
        num_problems: How many, 1 to 20.
        num_steps: T >= 1.

    Returns:
        `prices`, and of every problem its `path`, its `excess` loss, its contours and, at every
        price, where it stops, why, and what the halting model puts out on the way. Problems that
        do not stay finite are left out.

    Raises:
        InputError: See `write_explorer`.
    """
    require(
        family.dim == 2, f"only problems with 2 parameters can be drawn, these have {family.dim}"
    )
    require(1 <= num_problems <= 20, f"num_problems must lie in 1..20, got {num_problems}")
    require(
        model.halting.halts,
        "these weights were trained without halting; explore others, such as regression-2d",
    )
    model = model.double()
    batch = family.sample(num_problems, generator, dtype=torch.float64)
    trajectory = record(model.rule, batch, num_steps)
    kept = trajectory.finite.nonzero().squeeze(1)
    require(len(kept) > 0, f"none of {num_problems} problems stays finite for {num_steps} steps")
    batch, trajectory = batch.select(kept), trajectory.select(kept)
    paths = _paths(OptimizationProcess(model.rule, batch), num_steps)
    middle, spread = model.card.price, model.card.price_range
    exponents = torch.linspace(-1, 1, _NUM_PRICES if spread > 1 else 1).tolist()
    prices = [float(f"{middle * spread**exponent:.3g}") for exponent in exponents]
    at_prices = [_at_price(model, trajectory, price) for price in prices]
    problems = [
        {
            "path": paths[place].tolist(),
            "excess": trajectory.excess[place].tolist(),
            "contours": _contours(batch.select(torch.tensor([place])), paths[place]),
            "at": [at_price[place] for at_price in at_prices],
        }
        for place in range(len(kept))
    ]
    return {"prices": prices, "problems": problems}


@torch.no_grad()
def _at_price(model: OptimizerModel, trajectory: Trajectory, price: float) -> list[dict[str, Any]]:
    """Stops, and what the halting model puts out, of every problem."""
    halting, unit = model.halting, CostUnit.UPDATES
    policy, time = halting.policy(unit), unit.decision_time
    prices = torch.full_like(trajectory.loss[:, 0], price)
    attached = halting.attach(trajectory, price)
    session = HaltingSession(policy, prices, halting)
    decided, reasons, forecasts = _decide(session, trajectory, halting.method)
    returned = returned_steps(decided, attached, policy.returns)
    oracle = costs(trajectory.excess, price).argmin(1)
    hazards = halting.method.hazards(attached.outputs, time)
    laws = []  # with the horizon at every step
    for step in range(1, trajectory.num_steps + 1):
        so_far = {name: value[:, :step] for name, value in attached.outputs.items()}
        laws.append(halting.method.posterior(so_far, time).log_prob().exp())
    return [
        {
            "stop": int(decided[place]),
            "reason": reasons[place],
            "returned": int(returned[place]),
            "oracle": int(oracle[place]),
            "hazard": None if hazards is None else _round(hazards[place]),
            "forecast": None if forecasts is None else _round(forecasts[place] / price),
            "posterior": [[1.0], *(_round(law[place]) for law in laws)],
        }
        for place in range(trajectory.num_items)
    ]


def _decide(
    session: HaltingSession, trajectory: Trajectory, method: HaltingMethod
) -> tuple[Tensor, list[str], Tensor | None]:
    """The first stop of each problem with its reason, and the forecast gains [B, T] if any."""
    decided = torch.full_like(trajectory.loss[:, 0], trajectory.num_steps, dtype=torch.int64)
    reasons, forecasts = [""] * trajectory.num_items, []
    for observation in trajectory:
        decision = session.observe(observation)
        first = decision.stop & (decided == trajectory.num_steps)
        decided = torch.where(first, observation.step, decided)
        for place in first.nonzero().flatten().tolist():
            reasons[place] = session.explain(decision, place)
        outputs = decision.observation.outputs
        forecasts.append(method.forecast_gain(outputs, session.policy.rule, session.price))
    known = [gain for gain in forecasts if gain is not None]
    return decided, reasons, torch.stack(known, 1) if len(known) == len(forecasts) else None


def _paths(process: OptimizationProcess, num_steps: int) -> Tensor:
    """theta_0..theta_T, shape [B, T+1, 2]."""
    state = process.init()
    paths = [process.result(state)]
    for step in range(num_steps):
        state = process.step(step, state).state
        paths.append(process.result(state))
    return torch.stack(paths, 1)


def _contours(problem: TaskBatch, path: Tensor) -> dict[str, Any]:
    """log10 of the excess loss on a grid around the path of one problem."""
    points = path if problem.minimizer is None else torch.cat((path, problem.minimizer))
    low, high = points.amin(0), points.amax(0)
    room = 0.15 * (high - low).clamp_min(0.2 * (high - low).amax().clamp_min(1e-3))
    axes = [
        torch.linspace(float(low[axis] - room[axis]), float(high[axis] + room[axis]), _GRID)
        for axis in range(2)
    ]
    grid = torch.cartesian_prod(*axes).to(path)
    same = problem.select(torch.zeros(len(grid), dtype=torch.int64))
    excess = same.score(grid, 0).excess
    height = excess.clamp_min(float(excess.max()) * 10**-_DECADES).log10().view(_GRID, _GRID).T
    return {
        "x": _round(axes[0], 5),
        "y": _round(axes[1], 5),
        "z": [_round(row) for row in height],
        "minimizer": None if problem.minimizer is None else problem.minimizer[0].tolist(),
    }


def _round(values: Tensor, digits: int = 3) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _forecasts(document: dict[str, Any]) -> bool:
    return document["problems"][0]["at"][0]["forecast"] is not None


def _downloads(document: dict[str, Any], stem: str) -> dict[str, Any]:
    """The numbers of the panels as CSV files."""
    paths, stops = [], []
    for place, problem in enumerate(document["problems"], 1):
        steps = zip(problem["path"], problem["excess"], strict=True)
        paths += [(place, t, *params, excess) for t, (params, excess) in enumerate(steps)]
        stops += [
            (place, price, at["stop"], at["returned"], at["oracle"], at["reason"])
            for price, at in zip(document["prices"], problem["at"], strict=True)
        ]
    return {
        "paths": {
            "name": f"{stem}-paths",
            "columns": ["problem", "step", "theta_0", "theta_1", "excess_loss"],
            "rows": paths,
        },
        "stops": {
            "name": f"{stem}-stops",
            "columns": ["problem", "price", "stop", "returned", "oracle_stop", "reason"],
            "rows": stops,
        },
    }
