"""Judge somebody else's stops, from a matrix of losses and the stops alone."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from haltwise._core.arrays import require_unmasked
from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise._core.percent import in_percent
from haltwise._core.random import stream
from haltwise._core.settings import price_per_unit, shown
from haltwise.curves.curves import Direction
from haltwise.evaluation.baselines import cross_fit
from haltwise.evaluation.judge import Stops, judge
from haltwise.evaluation.records import StoppingRecord
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    CostUnit,
    ReturnedIterate,
    returnable,
    returned_steps,
    steps_charged,
)

__all__ = ["FEWEST_ITEMS", "stopping_report"]

FEWEST_ITEMS = 20
"""With fewer, an interval means nothing."""

Array = Tensor | npt.ArrayLike

_INTEGERS = ("stops", "returned", "groups")
_LARGEST = 1e150  # the squares of larger numbers overflow


def stopping_report(
    losses: Array,
    stops: Array,
    *,
    price: float,
    unit: CostUnit = CostUnit.UPDATES,
    returned: Array | None = None,
    hazards: Array | None = None,
    observed: Array | None = None,
    groups: Array | None = None,
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

    Arrays may be tensors, arrays of NumPy or lists.

    Args:
        losses: Scored loss after 0..T steps, shape [n, T+1]; items with a loss that is not finite,
            scored or observed, are left out, and counted.
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
    given = {
        "losses": losses,
        "stops": stops,
        "returned": returned,
        "hazards": hazards,
        "observed": observed,
        "groups": groups,
    }
    arrays = {name: _tensor(name, each) for name, each in given.items() if each is not None}
    price = price_per_unit(price)
    require(
        isinstance(unit, CostUnit),
        f"unit must be {' or '.join(map(str, CostUnit))} (haltwise.stop_rules), got {shown(unit)}",
    )
    require(direction in ("min", "max"), f"direction must be 'min' or 'max', got {direction!r}")
    return _judge(arrays, price, unit, direction, baselines=baselines)


def _judge(
    arrays: dict[str, Tensor],
    price: float,
    unit: CostUnit,
    direction: Direction,
    *,
    baselines: bool,
) -> StoppingRecord:
    """Judge the stops of arrays by name, int64 or float64."""
    kept = _check(arrays, price)
    rows = kept.nonzero().squeeze(1)
    arrays = {name: value[rows] for name, value in arrays.items()}
    sign = -1.0 if direction == "max" else 1.0
    losses, stops = sign * arrays["losses"], arrays["stops"]
    trajectory = Trajectory(sign * arrays.get("observed", arrays["losses"]), losses)
    cost = steps_charged(stops, unit, trajectory.num_steps)
    ends = arrays.get("returned", cost)
    groups = arrays.get("groups")
    inner = None if groups is None else torch.unique(groups, return_inverse=True)[1]
    where = "at the stop" if unit is CostUnit.UPDATES else "one step after the stop"
    where = "at the steps in `returned`" if "returned" in arrays else where
    excess = losses.gather(1, ends.unsqueeze(1)).squeeze(1)
    policy = f"as given, with the loss {where}"
    judged = {"given": Stops(excess, cost, policy, *_dealt(trajectory, stops, ends, unit))}
    if baselines:
        judged |= cross_fit(trajectory, unit, price, stream(0, "stopping report"), inner)
    record = judge(
        trajectory,
        judged,
        unit,
        price=price,
        groups=inner,
        hazards=arrays.get("hazards"),
        num_left_out=len(kept) - len(rows),
        has_reference=False,
    )
    if record.rises:
        other = "min" if direction == "max" else "max"
        warn(
            f"{in_percent(record.share_rising)} of the items end worse than they start; if the "
            f'other direction is better, say direction="{other}" (--direction {other})',
            DataWarning,
        )
    return replace(record, direction=direction)


def _dealt(
    trajectory: Trajectory, stops: Tensor, ends: Tensor, unit: CostUnit
) -> tuple[Tensor, ReturnedIterate | None]:
    """What a deal hands around, see `Stops`: the stops, if one word says what they return."""
    for iterate in returnable(unit):
        if torch.equal(returned_steps(stops, trajectory, iterate), ends):
            return stops, iterate
    return ends, None


def _tensor(name: str, value: Array) -> Tensor:
    """Whole numbers in 64 bits, or real numbers in double precision, on the CPU."""
    require_unmasked(value, name)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} must be a tensor or an array of numbers ({error})") from None
    kinds, what, kind = (
        ("iu", "integers", "int") if name in _INTEGERS else ("fiu", "real numbers", "float")
    )
    way_out = f"convert with {name}.astype({kind})"
    if name == "groups":
        way_out = "number them with numpy.unique(groups, return_inverse=True)[1]"
    require(array.dtype.kind in kinds, f"{name} must be {what}, got {array.dtype}; {way_out}")
    return torch.from_numpy(array.astype(np.int64 if kind == "int" else np.float64))


def _check(arrays: dict[str, Tensor], price: float) -> Tensor:
    """Refuse what cannot be judged; the items whose losses are finite, bool [n]."""
    losses = arrays["losses"]
    require(
        losses.ndim == 2 and losses.shape[1] >= 2,
        "losses must have shape [n, T+1], a row an item and a column for each of the steps 0..T, T "
        f"at least 1; got {list(losses.shape)}",
    )
    num, num_steps = len(losses), losses.shape[1] - 1
    shapes = {"hazards": [num, num_steps], "observed": [num, num_steps + 1], "losses": None}
    for name, value in arrays.items():
        shape = shapes.get(name, [num])
        require(
            shape is None or list(value.shape) == shape,
            f"{name} must have shape {shape} to go with losses of shape {list(losses.shape)}, got "
            f"{list(value.shape)}",
        )
        if name not in ("stops", "returned"):
            continue
        wrong = ((value < 0) | (value > num_steps)).nonzero().flatten().tolist()
        if wrong:
            raise InputError(
                f"{name} must lie in 0..{num_steps}, the steps that losses hold; got "
                f"{int(value[wrong[0]])} in row {wrong[0]}; an item that never stopped has "
                f"{num_steps}"
            )
    if "hazards" in arrays:
        hazards = arrays["hazards"]
        unlikely = hazards[~((hazards >= 0) & (hazards <= 1))].tolist()
        if unlikely:
            raise InputError(
                f"hazards must be probabilities in [0, 1], got {unlikely[0]}; apply a sigmoid to "
                "log-odds"
            )
    kept = losses.isfinite().all(1) & arrays.get("observed", losses).isfinite().all(1)
    num_finite = int(kept.sum())
    left_out = f" after {num - num_finite} with NaN or infinite losses were left out"
    require(
        num_finite >= FEWEST_ITEMS,
        f"a report needs at least {FEWEST_ITEMS} items with finite losses, got {num_finite}"
        f"{left_out if num_finite < num else ''}; record more",
    )
    largest = max(losses[kept].abs().max().item(), price * num_steps)
    require(
        largest < _LARGEST,
        f"losses and the price of all steps must be below {_LARGEST:g}, got {largest:g}; divide "
        "losses and price by the same number",
    )
    return kept
