"""Judge a model that stops runs early on recorded runs that it has not seen."""

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch

from haltwise.curves.budgets import shares_to_try, stops_at_shares
from haltwise.curves.copies import warn_of_seen_runs
from haltwise.curves.curves import Curves, Floats, Integers
from haltwise.curves.levels import scores_in_use
from haltwise.curves.stop_model import StopModel
from haltwise.curves.stopping import LearnedStop, judgeable, stops_of, worth_of
from haltwise.evaluation.statistics import Interval, captured_gain, jackknife

__all__ = ["StopEarlyRecord", "WayToStop", "judge_learned_stop", "judge_stops"]


@final
@dataclass(frozen=True)
class WayToStop:
    """What a way to stop runs did to the average one."""

    j: Interval
    """J, what is returned and the price of what was spent, in units of the metric."""
    returned: Interval
    """What is returned, lower is better."""
    spent: Interval
    """The share of the cost of all runs that was spent."""


@final
@dataclass(frozen=True)
class StopEarlyRecord:
    """A model that stops runs early, judged on n runs.

    Intervals are those of `haltwise.evaluation.statistics.jackknife`, with whole groups left out.
    """

    runs: int
    groups: int
    metric: str
    direction: str
    cost_unit: str
    price: float
    """What a unit of cost must gain, in units of the metric."""
    ways: dict[str, WayToStop]
    """By name: "model", "to the end", "best equal share" of its budget for every run, chosen in
    hindsight, and "oracle", who knows the future."""
    saved: Interval
    """J of going on to the end less that of the model."""
    captured: Interval
    """Captured gain: 0 is the best equal share, 1 the oracle."""
    stopped: float
    """The share of the runs that the model stopped before their end."""
    by_group: dict[str, float]
    """What was saved in each group."""
    by_share: list[tuple[float, float]]
    """Shares of the budget, and J where every run stops there."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def judge_stops(
    model: StopModel, curves: Curves, returned: Floats | None = None
) -> StopEarlyRecord:
    """Stop recorded runs as a model says, and see what that saves.

    Args:
        model: Learned on other runs.
        curves: The runs, each longer than it should be; their metric and cost are counted in the
            units that the model was learned in.
        returned: What a stop at each point is worth, shape [P]; the best metric so far if None.

    Raises:
        InputError: Costs are counted in another unit, another direction is better, or no run can
            be judged.

    Warns:
        DataWarning: Runs are left out: they have one point or a budget of 0, or their first loss is
            not finite. Or the model was learned on some of them.
    """
    model.require_unit(curves.cost_unit)
    warn_of_seen_runs(model, curves)
    curves, worth = judgeable(curves.with_budgets(), worth_of(curves, returned))
    scores = scores_in_use([model.score(curve) for curve in curves])
    stops = stops_of(scores, np.array([model.fixed_level]), curves)
    return _record(model, curves, worth, stops[:, 0])


def judge_learned_stop(learned: LearnedStop) -> StopEarlyRecord:
    """Judge a model on the runs that it was learned on, each by what had not seen its group.

    Its level was chosen by these very stops, so what it saves on others may be a little less.
    """
    return _record(learned.model, learned.curves, learned.worth, learned.stops)


def _record(model: StopModel, curves: Curves, worth: Floats, stops: Integers) -> StopEarlyRecord:
    card, begins, ends = model.card, curves.offset[:-1], curves.num_points - 1
    bills = worth + card.price * curves.cost
    shares = shares_to_try(curves, bills)
    equal = stops_at_shares(curves, shares)
    by_share = bills[begins[:, None] + equal].mean(0)
    best = equal[:, by_share.argmin()]
    oracle = np.array([bills[a:b].argmin() for a, b in zip(begins, curves.offset[1:], strict=True)])
    points = {"model": stops, "to the end": ends, "best equal share": best, "oracle": oracle}
    names, index = np.unique(curves.group, return_inverse=True)
    groups = torch.from_numpy(index.astype(np.int64))

    def over_groups(statistic: Any, *columns: Floats) -> list[Interval]:
        return jackknife(statistic, torch.from_numpy(np.stack(columns, 1)), groups)

    def way(name: str, places: Integers) -> WayToStop:
        paid, returned = over_groups(lambda means: means, j[name], worth[places])
        (spent,) = over_groups(
            lambda means: means[:, :1] / means[:, 1:], curves.cost[places], whole
        )
        return WayToStop(paid, returned, spent.of_share())

    j = {name: bills[begins + stop] for name, stop in points.items()}
    whole = curves.cost[begins + ends]
    saved = j["to the end"] - j["model"]
    return StopEarlyRecord(
        runs=curves.num_runs,
        groups=len(names),
        metric=curves.metric,
        direction=card.direction,
        cost_unit=card.cost_unit,
        price=card.price,
        ways={name: way(name, begins + stop) for name, stop in points.items()},
        saved=over_groups(lambda means: means, saved)[0],
        captured=over_groups(
            lambda means: captured_gain(*means.unbind(1)).unsqueeze(1),
            *(j[name] for name in ("best equal share", "model", "oracle")),
        )[0],
        stopped=float((stops < ends).mean()),
        by_group={str(name): float(saved[index == k].mean()) for k, name in enumerate(names)},
        by_share=[*zip(shares.tolist(), by_share.tolist(), strict=True)],
    )
