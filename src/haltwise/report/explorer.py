"""The explorer: problems and recorded runs watched step by step, at any price, on one page."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.random import stream
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.processes.trajectory import Trajectory
from haltwise.report.formats import rounded, short
from haltwise.report.page import write_template
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

__all__ = ["explore", "explore_runs", "write_explorer", "write_run_explorer"]

_NUM_PRICES, _GRID = 31, 56
_NUM_VALUES = 150_000  # that depend on prices: a page of a megabyte
_DECADES = 7.0  # below the highest loss drawn, all contours are one colour
_MOST = 20  # items of a page
_NOTES = {
    "path": "Bands of log₁₀ of the loss above {reference}, darker where it is higher; the star is "
    "returned.",
    "loss": "The {quantity} after t {step}s, alone and with their price; the line marks the stop.",
    "posterior": "q(t) is the halting posterior over all {step}s drawn; the hazard, where the "
    "method has one, is the probability of stopping now, given that one has come this far.",
    "forecast": "What another {step} is forecast to gain, and what it brought, in prices: below 1 "
    "it is not worth its price. The axis ends at 10 prices.",
}


class _Words(NamedTuple):
    """What things are called on a page."""

    item: str
    step: str
    quantity: str


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
    words = (
        f"Problems of seed {seed}. Decisions are made with the gradient at θ_t in hand: a stop at "
        f"t costs t updates. It stops by {document['rule']}."
    )
    return _write(path, f"{short(name)} on {short(family_name)}", document, words)


def write_run_explorer(
    model: HaltingModel,
    recorded: Trajectory,
    path: Path,
    *,
    name: str,
    runs_name: str,
    maximizes: bool = False,
    num_runs: int = 5,
) -> Path:
    """Write one HTML page on which recorded runs of a loop are followed round by round.

    Args:
        model: What `haltwise.training.train_monitor` wrote, loaded.
        recorded: Runs of the loop that it stops, as it leaves them.
        path: Where the page goes; it holds everything and makes no request.
        name: Of the model, for the page.
        runs_name: For the page.
        maximizes: Whether scores were to be increased, and are negated.
        num_runs: How many there are to choose from, 1 to 20, spread evenly over all.

    Raises:
        InputError: The model does not halt, or the page cannot be written.
    """
    document = explore_runs(model, recorded, num_runs=num_runs)
    words = (
        "A stop at t leaves what t rounds have made. "
        + ("Scores are negated, so that lower is better. " if maximizes else "")
        + f"It stops by {document['rule']}."
    )
    return _write(path, f"{short(name)} on {short(runs_name)}", document, words)


def _write(path: Path, title: str, document: dict[str, Any], words: str) -> Path:
    first, called = document["items"][0], document["words"]
    notes = dict(_NOTES)
    if first["contours"] is None:
        del notes["path"]
    if first["at"][0]["forecast"] is None:
        del notes["forecast"]
    known = first["contours"] is not None and first["contours"]["minimizer"] is not None
    reference = "its minimum" if known else "the lowest value drawn"
    notes = {key: note.format(reference=reference, **called) for key, note in notes.items()}
    return write_template(
        path,
        "explorer",
        title=title,
        embedded=document,
        scripts=["panels"],
        panels=notes,
        words=words,
    )


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
    require(1 <= num_problems <= _MOST, f"num_problems must lie in 1..{_MOST}, got {num_problems}")
    _require_halting(model.halting)
    batch = family.sample(num_problems, generator, dtype=torch.float64)
    model = copy.deepcopy(model).double()
    recorded = record(model.rule, batch, num_steps)
    kept = recorded.finite.nonzero().squeeze(1)
    require(len(kept) > 0, f"none of {num_problems} problems stays finite for {num_steps} steps")
    batch, recorded = batch.select(kept), recorded.select(kept)
    words = _Words("problem", "update", "excess loss" if batch.has_reference else "loss")
    document = _document(model.halting, recorded, words)
    if family.dim == 2:
        for place, path in enumerate(_paths(model, batch, num_steps)):
            contours = _contours(
                batch.select(torch.tensor([place], device=batch.start.device)), path
            )
            document["items"][place] |= {"path": path.tolist(), "contours": contours}
    return document


def explore_runs(model: HaltingModel, recorded: Trajectory, *, num_runs: int) -> dict[str, Any]:
    """What the explorer draws of recorded runs; see `explore`."""
    require(1 <= num_runs <= _MOST, f"num_runs must lie in 1..{_MOST}, got {num_runs}")
    _require_halting(model)
    number = min(num_runs, recorded.num_items)
    ranks = torch.linspace(0, recorded.num_items - 1, number, dtype=torch.float64, device="cpu")
    places = ranks.round().long().to(recorded.loss.device)
    return _document(model, recorded.select(places), _Words("run", "round", "score"), places)


def _require_halting(model: HaltingModel) -> None:
    require(
        model.halts,
        "this model was trained without halting, so there are no stops to explore; choose another, "
        "such as regression-2d",
    )


def _document(
    model: HaltingModel, recorded: Trajectory, words: _Words, places: Tensor | None = None
) -> dict[str, Any]:
    policy = model.policy(CostUnit.UPDATES)
    numbers = range(recorded.num_items) if places is None else places.tolist()
    items: list[dict[str, Any]] = [
        {
            "name": f"{words.item} {number + 1}",
            "excess": _plain(excess),
            "path": None,
            "contours": None,
            "at": [],
        }
        for number, excess in zip(numbers, recorded.excess, strict=True)
    ]
    prices = _prices(model.card.price, model.card.price_range, recorded.loss.numel())
    for price in prices:
        stops = _stops(model, policy, model.attach(recorded, price), price)
        for item, found in zip(items, stops, strict=True):
            item["at"].append(found)
    return {
        "prices": prices,
        "rule": short(repr(policy.rule)),
        "words": words._asdict(),
        "items": items,
        "figures": {},
    }


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


def _prices(middle: float, spread: float, num_steps: int) -> list[float]:
    """The prices of the slider: those that were seen in training, fewer for many steps of items."""
    number = max(5, min(_NUM_PRICES, _NUM_VALUES // (3 * num_steps)))
    number = number if spread > 1 else 1
    exponents = torch.linspace(-1, 1, number, dtype=torch.float32, device="cpu").tolist()
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
        torch.linspace(float(start), float(end), _GRID, dtype=torch.float32, device="cpu")
        for start, end in zip(low - room, high + room, strict=True)
    )
    grid = torch.cartesian_prod(first, second).to(path)
    same = problem.select(torch.zeros(len(grid), dtype=torch.int64, device=grid.device))
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
