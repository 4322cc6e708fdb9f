"""The explorer: problems watched being solved, at any price, on one page."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise._core.random import stream
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.processes.trajectory import Trajectory
from haltwise.report.formats import rounded, short
from haltwise.report.page import render
from haltwise.rollout.record import record
from haltwise.stop_rules import (
    CostUnit,
    DecisionTime,
    StopPolicy,
    costs,
    decisions_and_reasons,
    returned_steps,
)
from haltwise.tasks.base import TaskBatch, TaskFamily

__all__ = ["explore", "write_explorer"]

_NUM_PRICES, _GRID = 31, 56
_DECADES = 7.0  # below the highest loss drawn, all contours are one colour
_NOTES = {
    "path": "Contours of log₁₀ of the loss above {reference}; the star is returned.",
    "loss": "The {quantity} after t updates, alone and with the price of the steps; the line marks "
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

    Raises:
        InputError: The model does not halt, no problem stays finite, or the page cannot be written.
    """
    document = explore(
        model,
        family,
        stream(seed, "explore"),
        num_problems=num_problems,
        num_steps=model.card.horizon if num_steps is None else num_steps,
    )
    first = document["problems"][0]
    notes = {**_NOTES, "loss": _NOTES["loss"].format(quantity=document["quantity"])}
    if first["contours"] is None:
        del notes["path"]
    else:
        known = first["contours"]["minimizer"] is not None
        reference = "its minimum" if known else "the lowest value drawn"
        notes["path"] = notes["path"].format(reference=reference)
    if first["at"][0]["forecast"] is None:
        del notes["forecast"]
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

    Cost is counted in updates, so that posterior, forecast and loss share their steps. Of every
    problem that stays finite there are its `excess` loss, a mere loss (`quantity`) where the least
    is unknown, and, where it has two parameters, its `path` and `contours`; at every price, where
    and why it stops, the posterior, the hazards and the forecasts, the latter None where the method
    has none.
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
    problems: list[dict[str, Any]] = [
        {"excess": _plain(excess), "path": None, "contours": None, "at": []}
        for excess in recorded.excess
    ]
    if family.dim == 2:
        for place, path in enumerate(_paths(model, batch, num_steps)):
            contours = _contours(batch.select(torch.tensor([place])), path)
            problems[place] |= {"path": path.tolist(), "contours": contours}
    prices = _prices(model.card.price, model.card.price_range)
    for price in prices:
        stops = _stops(model.halting, policy, model.halting.attach(recorded, price), price)
        for problem, found in zip(problems, stops, strict=True):
            problem["at"].append(found)
    return {
        "prices": prices,
        "rule": short(repr(policy.rule)),
        "quantity": "excess loss" if _is_excess(batch) else "loss",
        "problems": problems,
        "figures": {},
    }


def _is_excess(batch: TaskBatch) -> bool:
    """Whether losses are measured from a least loss that is known."""
    return batch.minimizer is not None or bool((batch.reference_loss != 0).any())


def _stops(
    model: HaltingModel, policy: StopPolicy, trajectory: Trajectory, price: float
) -> list[dict[str, Any]]:
    """Where and why each problem stops at a price, and what the model puts out on the way."""
    rule, method, outputs = policy.rule, model.method, trajectory.outputs
    decided, reason = decisions_and_reasons(rule, trajectory)
    found: dict[str, list[Any]] = {
        "stop": decided.tolist(),
        "returned": returned_steps(decided, trajectory, policy.returns).tolist(),
        "oracle": costs(trajectory.excess, price).argmin(1).tolist(),
        "reason": [(*rule.reasons, "")[index] for index in reason.tolist()],  # "" at -1
    }
    prices = torch.full_like(trajectory.excess[:, 0], price)
    gains = [
        method.forecast_gain({name: value[:, t] for name, value in outputs.items()}, rule, prices)
        for t in range(trajectory.num_steps)
    ]
    known = [gain / price for gain in gains if gain is not None]
    time = DecisionTime.AFTER_GRADIENT
    curves = {
        "posterior": method.posterior(outputs, time).log_prob().exp(),
        "hazard": method.hazards(outputs, time),
        "forecast": torch.stack(known, 1) if known else None,
    }
    for name, values in curves.items():
        missing = [None] * trajectory.num_items
        found[name] = missing if values is None else [_plain(row) for row in values]
    return [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]


def _prices(middle: float, spread: float) -> list[float]:
    """The prices of the slider: those that were seen in training, and some more around one."""
    exponents = torch.linspace(
        -1, 1, _NUM_PRICES if spread > 1 else 1, dtype=torch.float32
    ).tolist()
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
        torch.linspace(float(start), float(end), _GRID, dtype=torch.float32)
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
