"""The replay: recorded learning curves, what was forecast, and where any price gives them up."""

from pathlib import Path
from typing import Any

import numpy as np

from haltwise._core.errors import require
from haltwise._core.settings import whole_number
from haltwise.curves.curves import Curve, Curves, Floats, Integers
from haltwise.curves.levels import MIN_POINTS, GiveUps, first_below, scores_in_use
from haltwise.curves.model import CurveModel, cost_scale
from haltwise.report.formats import as_given, count, percent, plural, rounded, short
from haltwise.report.page import write_template

__all__ = ["replay", "write_replay"]

_NUM_PRICES, _NUM_POINTS, _MOST = 61, 300, 50
_NOTES = {
    "curve": "Dotted is what came after, and would not have been paid for; the upright line marks "
    "where the run is given up, the level one its target.",
    "chance": "What the model took for the chance to meet the target within the budget, each time "
    "from no more than the curve up to there.",
    "worth": "The chance per unit of the cost to come. The run is given up where it falls below "
    "the price; before a twentieth of the budget and the third point nothing is given up.",
    "all": "Every price of the slider, for all runs in the file; the diamond is this one. Runs "
    "that the model was learned on look better here than others will.",
}


def write_replay(
    model: CurveModel,
    curves: Curves,
    path: Path,
    *,
    name: str,
    runs_name: str,
    num_runs: int = 12,
    min_points: int = MIN_POINTS,
) -> Path:
    """Write one HTML page on which recorded runs are given up at any price.

    Args:
        model: What gives runs up, as `haltwise.curves.shipped.pretrained()`.
        curves: Runs with targets and budgets.
        path: Where the page goes; it holds everything and makes no request.
        name: Of the model, for the page.
        runs_name: For the page.
        num_runs: How many there are to choose from, 1 to 50, spread evenly over all; the shares of
            cost and successes are of all.
        min_points: A run of fewer points is not given up.

    Raises:
        InputError: A run has no target or no budget, or the page cannot be written.
    """
    document = replay(model, curves, num_runs=num_runs, min_points=min_points)
    succeeded = int((curves.success >= 0).sum())
    words = (
        f"{count(curves.num_runs)} runs, of which {count(succeeded)} met their target. "
        f"{short(name)} was learned on {count(model.card.num_runs)} runs of "
        f"{count(model.card.num_groups)} groups."
    )
    return write_template(
        path,
        "replay",
        title=f"{short(name)} on {short(runs_name)}",
        embedded=document,
        scripts=["panels"],
        panels=_NOTES,
        words=words,
    )


def replay(model: CurveModel, curves: Curves, *, num_runs: int, min_points: int) -> dict[str, Any]:
    """What the replay draws, as JSON values.

    Of every run shown there are its `cost`, `metric`, `chance` and `score` at some 300 of its
    points, and at each price the place of that point at which it is given up, None if nowhere.
    """
    require(1 <= num_runs <= _MOST, f"num_runs must lie in 1..{_MOST}, got {num_runs}")
    min_points = whole_number("min_points", min_points)
    curves = curves.measured()
    chances = [model.chance(curve) for curve in curves]
    pairs = zip(curves, chances, strict=True)
    scores = scores_in_use([model.score_of(curve, chance) for curve, chance in pairs], min_points)
    levels = _levels(model, curves)
    prices = _prices(scores, levels)
    stops = GiveUps.of(curves, scores, prices)
    shown = np.linspace(0, curves.num_runs - 1, min(num_runs, curves.num_runs)).round().astype(int)
    return {
        "prices": prices.tolist(),
        "levels": [
            {"name": f"{percent(lost)} of the successes", "place": int(np.searchsorted(prices, at))}
            for lost, at in levels.items()
        ],
        "metric": curves.metric,
        "unit": plural(curves.cost_unit),
        "totals": {
            "saved": stops.share_saved.tolist(),
            "lost": stops.share_lost.tolist(),
            "runs": (stops.saved > 0).sum(0).tolist(),
        },
        "items": [_item(curves, run, chances[run], scores[run], prices) for run in shown],
        "figures": {},
    }


def _item(
    curves: Curves, run: int, chance: Floats, score: Floats, prices: Floats
) -> dict[str, Any]:
    curve: Curve = curves[run]
    end = curve.success if curve.success >= 0 else curve.num_points
    stops = first_below(score[:end], prices)
    kept = _kept(
        curve.num_points, [*stops[stops < end].tolist(), *([end] if end < curve.num_points else [])]
    )
    place = {int(point): k for k, point in enumerate(kept)}
    finite = np.where(np.isfinite(score), score, np.nan)
    return {
        "name": str(curves.name[run]),
        "cost": _plain(curve.cost[kept]),
        "metric": _plain(curve.columns[curve.metric][kept]),
        "chance": _plain(chance[kept]),
        "score": _plain(finite[kept]),
        "target": as_given(curve.target),
        "goal": float(curve.target),
        "budget": float(curve.budget),
        "success": place.get(curve.success),
        "spent": float(curve.cost[min(end, curve.num_points - 1)]),
        "stops": [place[int(stop)] if stop < end else None for stop in stops],
    }


def _kept(num_points: int, needed: list[int]) -> Integers:
    """Places of the points shown: evenly spread, and all that something happens at."""
    even = np.linspace(0, num_points - 1, min(_NUM_POINTS, num_points)).round().astype(np.int64)
    return np.union1d(even, np.array(needed, np.int64))


def _levels(model: CurveModel, curves: Curves) -> dict[float, float]:
    """The prices of the card's levels, by the share of successes that may be lost."""
    own_unit = curves.cost_unit == model.card.cost_unit
    scale = None if own_unit else cost_scale(curves)
    shares = sorted(map(float, model.card.levels))
    found = {lost: model.level(lost=lost, scale=scale) for lost in shares}
    return {lost: level for lost, level in found.items() if level > 0}


def _prices(scores: list[Floats], levels: dict[float, float]) -> Floats:
    """The prices of the slider: from one that gives nothing up to one that gives up all."""
    lowest = np.array([score.min() for score in scores])
    known = np.concatenate([score[np.isfinite(score) & (score > 0)] for score in scores])
    require(len(known) > 0, "no run goes on long enough to forecast anything")
    least = min(lowest[lowest > 0].min(initial=known.min()), *levels.values(), known.max())
    spread = np.geomspace(least / 2, 1.1 * known.max(), _NUM_PRICES)
    found = np.array([float(f"{price:.3g}") for price in spread])
    return np.union1d(found, [*levels.values()])


def _plain(values: Floats) -> list[float | None]:
    return [rounded(value) for value in values]
