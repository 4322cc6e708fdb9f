"""The explorer: two-parameter problems seen being solved, at any price, on one page."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise._core.random import stream
from haltwise.halting.halter import AFTER
from haltwise.models import loading
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.report.page import render, slug
from haltwise.rollout.record import record, unroll
from haltwise.stop_rules import FixedBudget, HazardThreshold, PonderThreshold, decisions
from haltwise.stop_rules.accounts import CostUnit, costs, returned_steps
from haltwise.tasks import TaskBatch, TaskFamily

__all__ = ["explore", "write_explorer"]

_NUM_PRICES, _GRID = 31, 56
_DECADES = 7.0  # below the highest loss drawn, all contours are one colour
_PANELS = (
    {
        "id": "path",
        "data": "paths",
        "note": "Contours of log₁₀ of the loss above its minimum, in units of the loss; a star is "
        "returned.",
    },
    {
        "id": "loss",
        "data": "paths",
        "note": "Loss above the minimum after t updates, alone and with the price of the steps; "
        "the line marks the stop.",
    },
    {
        "id": "posterior",
        "data": "stops",
        "note": "q(t|x,T) with the horizon T at the present step: what is left falls on T. The "
        "hazard is the probability of stopping now, given that one has come this far.",
    },
    {
        "id": "increment",
        "data": "stops",
        "note": "δ is the logit’s increment: what the next step is forecast to gain, less its "
        "price. The thesis stops where it first falls to 0. The axis ends at 10 prices.",
    },
)


def write_explorer(
    optimizer: str | Path,
    family: TaskFamily,
    path: Path,
    *,
    family_name: str,
    seed: int = 2026,
    num_problems: int = 5,
    num_steps: int | None = None,
) -> Path:
    """Write one HTML page on which problems are solved step by step.

    Args:
        optimizer: A shipped name, a run directory or a weights file, with a halting head.
        family: Of problems with two parameters.
        path: Where the page goes; it holds everything and makes no request.
        family_name: For the page.
        seed: Of the problems.
        num_problems: How many there are to choose from, 1 to 20.
        num_steps: T, steps drawn; the optimizer's horizon if None.

    Returns:
        `path`.

    Raises:
        InputError: The problems have not two parameters, the optimizer does not stop by a halting
            head, no problem stays finite, or the page cannot be written.
    """
    learned = loading.load(optimizer)
    horizon = learned.card["config"]["horizon"] if num_steps is None else num_steps
    generator = stream(seed, "explore")
    document = explore(learned, family, generator, num_problems=num_problems, num_steps=horizon)
    name = Path(optimizer).name
    stem = slug(f"{name}-{family_name}-{seed}")
    document |= {"optimizer": name, "family": family_name, "seed": seed}
    document["data"] = {
        "paths": {
            "name": f"{stem}-paths",
            "columns": ["problem", "step", "theta_0", "theta_1", "excess_loss"],
            "rows": [
                (place, step, *params, excess)
                for place, problem in enumerate(document["problems"], 1)
                for step, (params, excess) in enumerate(
                    zip(problem["path"], problem["excess"], strict=True)
                )
            ],
        },
        "stops": {
            "name": f"{stem}-stops",
            "columns": [
                "problem",
                "price",
                "stop",
                "returned",
                "oracle_stop",
                "step",
                "increment_in_prices",
                "hazard",
            ],
            "rows": [
                (
                    place,
                    price,
                    at["stop"],
                    at["returned"],
                    at["oracle"],
                    step,
                    at["forecast"][step],
                    at["hazard"][step] if at["hazard"] else None,
                )
                for place, problem in enumerate(document["problems"], 1)
                for price, at in zip(document["prices"], problem["at"], strict=True)
                for step in range(horizon)
            ],
        },
    }
    panels = [panel for panel in _PANELS if panel["id"] != "increment" or document["forecasts"]]
    title = f"{name} on {family_name}"
    page = render("explorer", title=title, embedded=document, panels=panels)
    write_atomically(path, page.encode())
    return path


def explore(
    optimizer: OptimizerModel,
    family: TaskFamily,
    generator: torch.Generator,
    *,
    num_problems: int,
    num_steps: int,
) -> dict[str, Any]:
    """What the explorer draws, as JSON values.

    Decisions fall with the gradient at theta_t in hand and return theta_t (`CostUnit.UPDATES`), as
    in the thesis, so that q(t|x,T), delta_t and the loss share their steps.

    Args:
        optimizer: With a halting head.
        family: Of problems with two parameters.
        generator: Draws the problems.
        num_problems: How many, 1 to 20.
        num_steps: T >= 1.

    Returns:
        `prices`, and of every problem its `path`, its `excess` loss, its contours and, at every
        price, where it stops and what the head said on the way. Problems that do not stay finite
        are left out.

    Raises:
        InputError: See `write_explorer`.
    """
    require(
        family.dim == 2, f"only problems with 2 parameters can be drawn, these have {family.dim}"
    )
    require(1 <= num_problems <= 20, f"num_problems must lie in 1..20, got {num_problems}")
    policy = optimizer.policy(CostUnit.UPDATES)
    require(
        not isinstance(policy.rule, (FixedBudget, PonderThreshold)),
        "the explorer needs a halting head with a softmax or stick-breaking posterior; choose an "
        "optimizer such as regression-2d",
    )
    batch = family.sample(num_problems, generator, dtype=torch.float64)
    optimizer = optimizer.double()
    recording = record(optimizer.rule, batch, num_steps)
    kept = recording.finite.nonzero().squeeze(1)
    require(len(kept) > 0, f"none of {num_problems} problems stays finite for {num_steps} steps")
    batch, excess = batch.select(kept), recording.excess[kept]
    paths = _paths(optimizer, batch, num_steps)
    config = optimizer.card["config"]
    middle, spread = config["price"], max(config["price_range"], 1.0)
    exponents = torch.linspace(-1, 1, _NUM_PRICES if spread > 1 else 1).tolist()
    prices = [float(f"{middle * spread**exponent:.3g}") for exponent in exponents]
    problems: list[dict[str, Any]] = [
        {
            "path": paths[place].tolist(),
            "excess": excess[place].tolist(),
            "contours": _contours(batch.select(torch.tensor([place])), paths[place]),
            "at": [],
        }
        for place in range(len(kept))
    ]
    for price in prices:
        column = torch.full((len(kept),), price, dtype=torch.float64)
        trajectory = unroll(optimizer, batch, num_steps, column)
        traces = trajectory.traces()
        decided = decisions(policy.rule, traces)
        returned = returned_steps(decided, traces, policy.recall)
        oracle = costs(excess, price).argmin(1)
        said = trajectory.halting
        tau = optimizer.temperature(column).unsqueeze(1)
        forecast = said.increments[..., AFTER] * tau / price
        hazard = said.hazard_logits[..., AFTER].sigmoid()
        reads_hazard = isinstance(policy.rule, HazardThreshold)
        for place, problem in enumerate(problems):
            problem["at"].append(
                {
                    "stop": int(decided[place]),
                    "returned": int(returned[place]),
                    "oracle": int(oracle[place]),
                    "forecast": forecast[place].tolist(),
                    "hazard": hazard[place].tolist() if reads_hazard else None,
                    "prices_per_temperature": price / float(tau[place]),
                }
            )
    rule = policy.rule
    return {
        "prices": prices,
        "threshold": 1 / (1 + math.exp(-rule.threshold))
        if isinstance(rule, HazardThreshold)
        else None,
        "forecasts": config["posterior"] in ("softmax", "both"),
        "problems": problems,
    }


def _paths(optimizer: OptimizerModel, batch: TaskBatch, num_steps: int) -> Tensor:
    """theta_0..theta_T, shape [B, T+1, 2]."""
    params, state = batch.start, optimizer.rule.init(batch.start)
    paths = [params]
    with torch.no_grad():
        for step in range(num_steps):
            update, _, state = optimizer.rule.step(batch.observe(params, step).grad, state)
            params = params + update
            paths.append(params)
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
    highest = excess.max()
    height = excess.clamp_min(float(highest) * 10**-_DECADES).log10().view(_GRID, _GRID).T
    return {
        "x": [round(value, 5) for value in axes[0].tolist()],
        "y": [round(value, 5) for value in axes[1].tolist()],
        "z": [[round(value, 3) for value in row] for row in height.tolist()],
        "minimizer": None if problem.minimizer is None else problem.minimizer[0].tolist(),
    }
