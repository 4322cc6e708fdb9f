"""Judge somebody else's stops, from a matrix of losses and the stops alone."""

from dataclasses import replace

import torch
from torch import Tensor

from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise._core.random import stream
from haltwise._core.settings import price_per_unit
from haltwise.curves.curves import Direction
from haltwise.evaluation.baselines import cross_fit
from haltwise.evaluation.judge import Stops, judge
from haltwise.evaluation.records import StoppingRecord
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import CostUnit, steps_charged

__all__ = ["FEWEST_ITEMS", "stopping_report"]

FEWEST_ITEMS = 20
"""With fewer, an interval means nothing."""


def stopping_report(
    losses: Tensor,
    stops: Tensor,
    *,
    price: float,
    unit: CostUnit = CostUnit.UPDATES,
    returned: Tensor | None = None,
    hazards: Tensor | None = None,
    observed: Tensor | None = None,
    groups: Tensor | None = None,
    direction: Direction = "min",
    baselines: bool = True,
) -> StoppingRecord:
    """Judge stops on the trajectories of any program.

    J is the loss where an item ends plus price times cost. The *oracle* ends each item at its least
    J, seen in hindsight; the *best fixed budget* is one number of steps for all, chosen in
    hindsight. *Captured gain* is (J_fixed - J) / (J_fixed - J_oracle), see
    docs/theory.md, Eq. (captured-gain).

    Baselines (a fixed budget, a plateau, patience in length and tolerance) are cross-fitted: tuned
    on one half of the items and judged on the other, and the other way round. Like the stops
    judged, they may return the best iterate observed. The stops are taken as given: if whatever
    made them was tuned on these items, the comparison flatters them.

    Args:
        losses: Scored loss after 0..T steps, shape [n, T+1]; items with a loss that is not finite
            are left out, and counted.
        stops: Step 0..T at which each item's stop was decided, integers [n]; T if never.
        price: c, of a step, above 0, in units of the loss.
        unit: `UPDATES`: a stop at t costs t and returns theta_t. `GRADIENTS`: it costs t + 1 and
            returns theta_{t+1}. The oracle and fixed budgets pay for the steps they take.
        returned: The s of the theta_s that each item returns, integers [n], where that is not what
            the unit says: the last update was left out, or the best iterate kept.
        hazards: Probability of stopping at t given that it is reached, in [0, 1], shape [n, T].
        observed: What the baselines see in place of `losses`, shape [n, T+1].
        groups: The run or seed to which each item belongs, integers [n]. Intervals then hold for
            other groups, not for other items of these.
        direction: Whether lower or higher is better; where higher is, as of an accuracy, a loss is
            what was given with its sign changed.
        baselines: Whether to tune baselines.

    Raises:
        InputError: A shape, a stop, a price or a hazard is impossible, or fewer than
            `FEWEST_ITEMS` items have finite losses.

    Warns:
        DataWarning: Most items end worse than they start, as if another direction were better.

    Examples:
        >>> losses = torch.rand(50, 1, dtype=torch.float64) * 0.5 ** torch.arange(9)
        >>> stopping_report(losses, torch.full((50,), 3), price=0.02).rules["oracle"].gain.value
        1.0
    """
    _check(losses, stops, price, returned, hazards, observed, groups)
    require(direction in ("min", "max"), f"direction must be 'min' or 'max', got {direction!r}")
    if direction == "max":
        losses, observed = -losses.double(), None if observed is None else -observed.double()
    cost = steps_charged(stops.long(), unit, losses.shape[1] - 1)
    ends = cost if returned is None else returned.long()
    excess = losses.double().gather(1, ends.unsqueeze(1)).squeeze(1)
    rows = losses.isfinite().all(1).nonzero().squeeze(1)
    seen = (losses if observed is None else observed)[rows].double()
    trajectory = Trajectory(seen, losses[rows].double())
    inner = None if groups is None else torch.unique(groups[rows], return_inverse=True)[1]
    where = "at the stop" if unit is CostUnit.UPDATES else "one step after the stop"
    where = where if returned is None else "at the steps in `returned`"
    given = {"given": Stops(excess[rows], cost[rows], f"as given, with the loss {where}")}
    if baselines:
        given |= cross_fit(trajectory, unit, price, stream(0, "stopping report"), inner)
    record = judge(
        trajectory,
        given,
        unit,
        price=price,
        groups=inner,
        hazards=None if hazards is None else hazards[rows],
        num_left_out=len(losses) - len(rows),
        has_reference=False,
    )
    if record.rises:
        other = "min" if direction == "max" else "max"
        warn(
            f"{record.share_rising:.0%} of the items end worse than they start; if the other "
            f'direction is better, say direction="{other}" (--direction {other})',
            DataWarning,
        )
    return replace(record, direction=direction)


def _check(
    losses: Tensor,
    stops: Tensor,
    price: float,
    returned: Tensor | None,
    hazards: Tensor | None,
    observed: Tensor | None,
    groups: Tensor | None,
) -> None:
    require(
        losses.ndim == 2 and losses.shape[1] >= 2,
        "losses must have shape [n, T+1], a row an item and a column for each of the steps 0..T, T "
        f"at least 1; got {list(losses.shape)}",
    )
    price = price_per_unit(price)
    num, num_steps = len(losses), losses.shape[1] - 1
    shapes = {
        "stops": (stops, [num]),
        "returned": (returned, [num]),
        "hazards": (hazards, [num, num_steps]),
        "observed": (observed, [num, num_steps + 1]),
        "groups": (groups, [num]),
    }
    for name, (value, shape) in shapes.items():
        if value is None:
            continue
        require(
            list(value.shape) == shape,
            f"{name} must have shape {shape} to go with losses of shape {list(losses.shape)}, got "
            f"{list(value.shape)}",
        )
        if name in ("hazards", "observed"):
            continue
        kind = str(value.dtype).removeprefix("torch.")
        require(
            "int" in kind, f"{name} must be integers, got {kind}; convert with {name}.astype(int)"
        )
        wrong = ((value < 0) | (value > num_steps)).nonzero().flatten().tolist()
        if wrong and name != "groups":
            raise InputError(
                f"{name} must lie in 0..{num_steps}, the steps that losses hold; got "
                f"{int(value[wrong[0]])} in row {wrong[0]}; an item that never stopped has "
                f"{num_steps}"
            )
    if hazards is not None:
        unlikely = hazards[~((hazards >= 0) & (hazards <= 1))].tolist()
        if unlikely:
            raise InputError(
                f"hazards must be probabilities in [0, 1], got {unlikely[0]}; apply a sigmoid to "
                "log-odds"
            )
    num_finite = int(losses.isfinite().all(1).sum())
    left_out = f" after {num - num_finite} with NaN or infinite losses were left out"
    require(
        num_finite >= FEWEST_ITEMS,
        f"a report needs at least {FEWEST_ITEMS} items with finite losses, got {num_finite}"
        f"{left_out if num_finite < num else ''}; record more",
    )
