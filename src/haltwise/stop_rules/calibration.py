"""The choice of a stop policy on trajectories that were set aside for it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import CalibrationWarning, require, warn
from haltwise._core.settings import price_per_unit, real_number, shown
from haltwise._core.tensors import widened
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import StopRule, decide_all
from haltwise.stop_rules.gradient_norm import GradientNorm
from haltwise.stop_rules.logistic import Logistic
from haltwise.stop_rules.patience import Patience
from haltwise.stop_rules.plateau import Plateau
from haltwise.stop_rules.policy import (
    RETURNABLE,
    CostUnit,
    ReturnedIterate,
    StopPolicy,
    costs,
    returned_excess,
    steps_charged,
)

__all__ = ["BASELINES", "Calibration", "calibrate", "choose", "returnable", "tune_baselines"]

_NUM_NEEDED = 50  # problems, for a threshold
_MOST_AT_ONCE = 2**18  # decisions measured together

BASELINES: Mapping[str, type[StopRule]] = MappingProxyType(
    {
        "gradient_norm": GradientNorm,
        "plateau": Plateau,
        "patience": Patience,
        "logistic": Logistic,
    }
)
"""Rules that need no halting model."""

_NEED_GRADIENTS = ("gradient_norm", "logistic")


@final
@dataclass(frozen=True)
class Calibration:
    """The policy that was chosen, and what it reached on the problems it was chosen on."""

    policy: StopPolicy
    unit: CostUnit
    num_items: int
    mean_excess: float
    mean_cost: float
    """In the unit of cost."""

    def mean_j(self, price: float) -> float:
        """Mean J of the items, docs/theory.md, Eq. (cost)."""
        return self.mean_excess + price * self.mean_cost


def calibrate(
    rule: type[StopRule],
    trajectory: Trajectory,
    *,
    price: float | None = None,
    budget: float | None = None,
    unit: CostUnit = CostUnit.UPDATES,
    returns: tuple[ReturnedIterate, ...] | None = None,
    **settings: Any,
) -> Calibration:
    """Choose, as `choose` does, among a rule's `candidates` on trajectories set aside for it.

    The settings are for `candidates`, for instance `time=DecisionTime.BEFORE_GRADIENT`. Those that
    are fitted to a price take, where none is given, the mean gain of a step. Items whose excess is
    not finite throughout are left out, with a warning; at least 50 must be left.

    Raises:
        InputError: See `choose`; or there are too few items, or an argument is impossible.

    Warns:
        CalibrationWarning: Items were left out, or the price is so high that every item is best
            stopped at once.

    Examples:
        >>> import torch
        >>> from haltwise.stop_rules import Patience
        >>> generator = torch.Generator().manual_seed(0)
        >>> noise = torch.randn(200, 30, generator=generator)
        >>> losses = torch.linspace(3, 0, 30).clamp_min(1) + 0.01 * noise
        >>> calibrate(Patience, Trajectory(losses, losses), price=0.05).policy.rule.length >= 1
        True
    """
    kinds: tuple[tuple[str, object, Any, str], ...] = (
        ("trajectory", trajectory, Trajectory, "a Trajectory, of losses [n, T+1] and excess"),
        ("unit", unit, CostUnit, " or ".join(map(str, CostUnit))),
        ("returns", returns, tuple | None, "a tuple of ReturnedIterate"),
    )
    for name, value, kind, words in kinds:
        require(isinstance(value, kind), f"{name} must be {words}, got {shown(value)}")
    _require_steps(trajectory)
    price = None if price is None else price_per_unit(price)
    budget = None if budget is None else real_number("budget", budget)
    kept = trajectory.excess.isfinite().all(1).nonzero().squeeze(1)
    if len(kept) < trajectory.num_items:
        warn(
            f"{trajectory.num_items - len(kept)} of {trajectory.num_items} problems are left out "
            "of the calibration: their excess loss is not finite at every step",
            CalibrationWarning,
        )
        trajectory = trajectory.select(kept)
    require(
        len(kept) >= _NUM_NEEDED,
        f"calibration needs at least {_NUM_NEEDED} problems, got {len(kept)}; record more",
    )
    if price is not None and _stops_at_once(trajectory.excess, unit, price):
        warn(
            f"at a price of {price:g} every one of the {len(kept)} problems is best stopped at its "
            f"first step (cost counted in {unit.value}): nothing is worth computing; lower the "
            "price",
            CalibrationWarning,
        )
    mean = widened(trajectory.excess).mean(0)
    gain = (mean[0] - mean.min()).item() / max(trajectory.num_steps, 1)
    table = costs(trajectory.excess, gain if price is None else price)
    candidates: Any = rule.candidates
    return choose(
        candidates(trajectory, table, **settings),
        trajectory,
        unit,
        price=price,
        budget=budget,
        returns=returns,
    )


def _require_steps(trajectory: Trajectory) -> None:
    require(
        trajectory.num_steps > 0,
        "losses of shape [n, 1] have no step to stop at; record two losses of each problem or more",
    )


def _stops_at_once(excess: Tensor, unit: CostUnit, price: float) -> bool:
    """Whether in hindsight every item is best stopped at step 0, whatever is returned then."""
    if unit is CostUnit.GRADIENTS:  # the next iterate is paid for
        excess = torch.minimum(excess[:, :-1], excess[:, 1:])
    j = costs(excess, price)
    return torch.equal(j[:, 0], j.amin(1))


def choose(
    candidates: Iterable[StopRule],
    trajectory: Trajectory,
    unit: CostUnit,
    *,
    price: float | None = None,
    budget: float | None = None,
    returns: tuple[ReturnedIterate, ...] | None = None,
) -> Calibration:
    """Choose the candidate whose stops serve best on average, by a price or a budget.

    What a chosen stop loses on other problems is bounded by `haltwise.certify`.

    Args:
        candidates: Settings to try, at least one.
        trajectory: The tuning problems.
        unit: What is counted.
        price: c, in units of the loss: least mean excess + c * cost.
        budget: Least mean excess at a mean cost of at most this.
        returns: What to try to return; the unit's default alone if None.

    Raises:
        InputError: Not just one of price and budget is given, or no candidate is within it.
    """
    require(
        (price is None) != (budget is None),
        f"give exactly one of price and budget, got {'none' if price is None else 'both'}",
    )
    tried_rules = list(candidates) if isinstance(candidates, Iterable) else candidates
    require(
        isinstance(tried_rules, list)
        and len(tried_rules) > 0
        and all(isinstance(each, StopRule) for each in tried_rules),
        f"candidates must be stop rules to choose from, at least one, got {shown(tried_rules)}",
    )
    _require_steps(trajectory)
    # What a stop at any step returns is the same for all candidates.
    every = torch.arange(trajectory.num_steps + 1, device=trajectory.loss.device)
    every = every.expand(trajectory.num_items, -1)
    excess = {
        iterate: returned_excess(trajectory, every, unit, iterate)
        for iterate in returns or RETURNABLE[unit][:1]
    }
    measured = []
    tried = decide_all(tried_rules, trajectory)
    while block := list(islice(tried, max(1, _MOST_AT_ONCE // max(1, trajectory.num_items)))):
        decided = torch.stack([steps for _, steps in block])
        cost = widened(steps_charged(decided, unit, trajectory.num_steps)).mean(1).tolist()
        means = {
            iterate: widened(table.t().gather(0, decided)).mean(1).tolist()
            for iterate, table in excess.items()
        }
        measured += [
            Calibration(StopPolicy(rule, iterate), unit, decided.shape[1], of[number], cost[number])
            for number, (rule, _) in enumerate(block)
            for iterate, of in means.items()
        ]
    if price is not None:
        c = price
        return min(measured, key=lambda m: _least(m.mean_j(c)))
    assert budget is not None
    within = [m for m in measured if m.mean_cost <= budget]
    least = min(m.mean_cost for m in measured)
    require(
        len(within) > 0,
        f"no candidate costs at most {budget:g} {unit.value} on average; the least attainable "
        f"is {least:.4g}",
    )
    return min(within, key=lambda m: (_least(m.mean_excess), m.mean_cost))


def _least(value: float) -> float:
    """The value to minimise: what is not a number comes last."""
    return math.inf if math.isnan(value) else value


def returnable(unit: CostUnit, *, holds: bool = False) -> tuple[ReturnedIterate, ...]:
    """What a stop may return at the cost of this unit, the learned iterate if a model `holds`."""
    return tuple(each for each in RETURNABLE[unit] if holds or each is not ReturnedIterate.LEARNED)


def tune_baselines(
    tuning: Trajectory,
    unit: CostUnit,
    price: float,
    rules: Mapping[str, type[StopRule]] = BASELINES,
    returns: tuple[ReturnedIterate, ...] | None = None,
) -> dict[str, Calibration]:
    """The settings of least J of the baselines that the trajectory shows enough for, by name.

    `returns` is what to try to return; all that is `returnable` if None.
    """
    table = costs(tuning.excess, price)
    offered = returnable(unit) if returns is None else returns
    return {
        name: choose(rule.candidates(tuning, table), tuning, unit, price=price, returns=offered)
        for name, rule in rules.items()
        if _shows_enough(tuning, name)
    }


def _shows_enough(trajectory: Trajectory, name: str) -> bool:
    """Whether a baseline has what it reads; a norm that never varies stands for no gradients."""
    norm = trajectory.log_grad_norm
    if norm is None:
        return name not in _NEED_GRADIENTS
    return name != "gradient_norm" or bool((norm != norm[0, 0]).any())
