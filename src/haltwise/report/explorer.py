"""The explorer: problems watched being solved, at any price, on one page."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise._core.random import stream
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.report.formats import rounded, short
from haltwise.report.page import render
from haltwise.rollout.record import record
from haltwise.stop_rules import CostUnit, DecisionTime, costs
from haltwise.stop_rules.base import decisions_and_reasons
from haltwise.stop_rules.cost import returned_steps
from haltwise.tasks.base import TaskBatch, TaskFamily

__all__ = ["explore", "write_explorer"]

_NUM_PRICES, _GRID = 31, 56
_DECADES = 7.0  # below the highest loss drawn, all contours are one colour
_NOTES = {
    "path": "Contours of log₁₀ of the loss, {above}; a star is returned.",
    "loss": "Excess loss after t updates, alone and with the price of the steps; the line marks "
    "the stop.",
    "posterior": "q(t) is the halting posterior over all steps drawn; the hazard, where the method "
    "has one, is the probability of stopping now, given that one has come this far.",
    "forecast": "What another step is forecast to gain, and what it brought, in prices: below 1 it "
    "is not worth its price. The axis ends at 10 prices.",
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
        model: An optimizer model that halts.
        family: Of problems; those of two parameters are drawn with their contours.
        path: Where the page goes; it holds everything and makes no request.
        name: Of the model, for the page.
        family_name: For the page.
        seed: Of the problems.
        num_problems: How many there are to choose from, 1 to 20.
        num_steps: T, steps drawn; the model's horizon if None.

    Returns:
        `path`.

    Raises:
        InputError: The model does not halt, no problem stays finite, or the page cannot be written.
    """
    horizon = model.card.horizon if num_steps is None else num_steps
    generator = stream(seed, "explore")
    document = explore(model, family, generator, num_problems=num_problems, num_steps=horizon)
    first = document["problems"][0]
    known = first["contours"] is not None and first["contours"]["minimizer"] is not None
    above = "above its minimum" if known else "above the lowest value drawn"
    missing = {
        name
        for name, value in (
            ("path", first["contours"]),
            ("posterior", first["at"][0]["posterior"]),
            ("forecast", first["at"][0]["forecast"]),
        )
        if value is None
    }
    notes = {key: note.format(above=above) for key, note in _NOTES.items() if key not in missing}
    title = f"{short(name)} on {short(family_name)}"
    words = (
        f"Problems of seed {seed}. Decisions are made with the gradient at θ_t in hand: a stop at "
        f"t costs t updates. It stops by {document['rule']}."
    )
    page = render("explorer", title=title, embedded=document, panels=notes, words=words)
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

    Cost is counted in updates, so that posterior, forecast and loss share their steps.

    Args:
        model: An optimizer model that halts.
        family: Of problems.
        generator: Draws the problems.
        num_problems: How many, 1 to 20.
        num_steps: T >= 1.

    Returns:
        `prices`, and of every problem its `excess` loss and, where it has two parameters, its
        `path` and `contours`; at every price, where and why it stops, the posterior, the hazards
        and the forecasts, the latter None where the method has none. Problems that do not stay
        finite are left out.

    Raises:
        InputError: See `write_explorer`.
    """
    require(1 <= num_problems <= 20, f"num_problems must lie in 1..20, got {num_problems}")
    require(
        model.halting.halts,
        "this model was trained without halting, so there are no stops to explore; choose another, "
        "such as regression-2d",
    )
    policy = model.policy(CostUnit.UPDATES)
    batch = family.sample(num_problems, generator, dtype=torch.float64)
    model = model.double()
    recorded = record(model.rule, batch, num_steps)
    kept = recorded.finite.nonzero().squeeze(1)
    require(len(kept) > 0, f"none of {num_problems} problems stays finite for {num_steps} steps")
    batch, recorded = batch.select(kept), recorded.select(kept)
    problems = [
        {"excess": _plain(recorded.excess[place]), "path": None, "contours": None, "at": []}
        for place in range(len(kept))
    ]
    if family.dim == 2:
        for place, path in enumerate(_paths(model, batch, num_steps)):
            problem = batch.select(torch.tensor([place]))
            problems[place] |= {"path": path.tolist(), "contours": _contours(problem, path)}
    prices = _prices(model.card.price, model.card.price_range)
    time, method, rule = DecisionTime.AFTER_GRADIENT, model.halting.method, policy.rule
    for price in prices:
        trajectory = model.halting.attach(recorded, price)
        decided, reason = decisions_and_reasons(rule, trajectory)
        returned = returned_steps(decided, trajectory, policy.returns)
        oracle = costs(recorded.excess, price).argmin(1)
        column = torch.full_like(recorded.excess[:, 0], price)
        outputs = trajectory.outputs
        shown = {
            "posterior": method.posterior(outputs, time).log_prob().exp(),
            "hazard": method.hazards(outputs, time),
        }
        steps = [
            method.forecast_gain({key: value[:, t] for key, value in outputs.items()}, rule, column)
            for t in range(num_steps)
        ]
        gains = [gain / price for gain in steps if gain is not None]
        shown["forecast"] = torch.stack(gains, 1) if gains else None
        for place, problem in enumerate(problems):
            why = int(reason[place])
            problem["at"].append(
                {
                    "stop": int(decided[place]),
                    "returned": int(returned[place]),
                    "oracle": int(oracle[place]),
                    "reason": rule.reasons[why] if why >= 0 else "",
                    **{
                        key: None if value is None else _plain(value[place])
                        for key, value in shown.items()
                    },
                }
            )
    return {"prices": prices, "rule": short(repr(rule)), "problems": problems, "figures": {}}


def _prices(middle: float, spread: float) -> list[float]:
    """The prices of the slider: those that were seen in training, and some more around one."""
    exponents = torch.linspace(-1, 1, _NUM_PRICES if spread > 1 else 1).tolist()
    return [float(f"{middle * spread**exponent:.3g}") for exponent in exponents]


def _paths(model: OptimizerModel, batch: TaskBatch, num_steps: int) -> Tensor:
    """theta_0..theta_T, shape [B, T+1, 2]."""
    process = OptimizationProcess(model.rule, batch)
    state = process.init()
    paths = [process.result(state)]
    for step in range(num_steps):
        state = process.step(step, state).state
        paths.append(process.result(state))
    return torch.stack(paths, 1)


def _contours(problem: TaskBatch, path: Tensor) -> dict[str, Any]:
    """log10 of the loss on a grid around the path of one problem.

    It is measured from the problem's minimum, or from the lowest value drawn where none is known.
    """
    points = path if problem.minimizer is None else torch.cat((path, problem.minimizer))
    low, high = points.amin(0), points.amax(0)
    room = 0.15 * (high - low).clamp_min(0.2 * (high - low).amax().clamp_min(1e-3))
    first, second = (
        torch.linspace(float(start), float(end), _GRID)
        for start, end in zip(low - room, high + room, strict=True)
    )
    grid = torch.cartesian_prod(first, second).to(path)
    same = problem.select(torch.zeros(len(grid), dtype=torch.int64))
    excess = same.score(grid, 0).excess
    if problem.minimizer is None:
        excess = excess - excess.amin()
    lowest = float(excess.max()) * 10**-_DECADES
    height = excess.clamp_min(lowest).log10().view(_GRID, _GRID).T
    return {
        "x": _plain(first),
        "y": _plain(second),
        "z": [_plain(row) for row in height],
        "minimizer": None if problem.minimizer is None else problem.minimizer[0].tolist(),
    }


def _plain(values: Tensor) -> list[float | None]:
    return [rounded(value) for value in values.tolist()]
