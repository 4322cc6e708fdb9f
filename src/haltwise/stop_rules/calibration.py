"""The choice of a stop policy on trajectories that were set aside for it."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import CalibrationWarning, require
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import StopRule, decide_all, decisions
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

BASELINES: Mapping[str, type[StopRule]] = MappingProxyType(
    {
        "gradient_norm": GradientNorm,
        "plateau": Plateau,
        "patience": Patience,
        "logistic": Logistic,
    }
)
"""Rules that need no halting model."""

_SHARES = torch.linspace(0.1, 0.99, 10, dtype=torch.float64)  # of the wealth, in a bet
_REFUTES, _NUM_HALVINGS = math.log(20), 40
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
    excess_bound: float
    """Upper end of the one-sided 95 % interval of the mean excess, see `choose`."""

    def mean_j(self, price: float) -> float:
        """Mean J of the items, docs/theory.md, Eq. (cost)."""
        return self.mean_excess + price * self.mean_cost


def calibrate(
    rule: type[StopRule],
    trajectory: Trajectory,
    *,
    price: float | None = None,
    budget: float | None = None,
    risk: float | None = None,
    bound: float | None = None,
    unit: CostUnit = CostUnit.UPDATES,
    returns: tuple[ReturnedIterate, ...] | None = None,
    **settings: Any,
) -> Calibration:
    """Choose, as `choose` does, among a rule's `candidates` on trajectories set aside for it.

    The settings are for `candidates`, for instance `time=DecisionTime.BEFORE_GRADIENT`. Those that
    are fitted to a price take, where none is given, the mean gain of a step. Items whose excess is
    not finite throughout are left out, with a warning; at least 50 must be left.

    Raises:
        InputError: See `choose`; or there are too few items.

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
    kept = trajectory.excess.isfinite().all(1).nonzero().squeeze(1)
    if len(kept) < trajectory.num_items:
        warnings.warn(
            f"{trajectory.num_items - len(kept)} of {trajectory.num_items} problems are left out "
            "of the calibration: their excess loss is not finite at every step",
            CalibrationWarning,
            stacklevel=2,
        )
        trajectory = trajectory.select(kept)
    require(
        len(kept) >= _NUM_NEEDED,
        f"calibration needs at least {_NUM_NEEDED} problems, got {len(kept)}; record more",
    )
    if price is not None and _stops_at_once(trajectory.excess, unit, price):
        warnings.warn(
            f"at a price of {price:g} every one of the {len(kept)} problems is best stopped at its "
            f"first step (cost counted in {unit.value}): nothing is worth computing; lower the "
            "price",
            CalibrationWarning,
            stacklevel=2,
        )
    mean = trajectory.excess.double().mean(0)
    gain = (mean[0] - mean.min()).item() / max(trajectory.num_steps, 1)
    table = costs(trajectory.excess, gain if price is None else price)
    candidates: Any = rule.candidates
    return choose(
        candidates(trajectory, table, **settings),
        trajectory,
        unit,
        price=price,
        budget=budget,
        risk=risk,
        bound=bound,
        returns=returns,
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
    risk: float | None = None,
    bound: float | None = None,
    returns: tuple[ReturnedIterate, ...] | None = None,
) -> Calibration:
    """Choose the candidate whose stops serve best on average, by one of price, budget and risk.

    `risk` asks the mean excess to lie at or below it with 95 % confidence, by Learn then Test
    (Angelopoulos et al. 2021, arXiv 2110.01052): the candidates are tested from the most costly on,
    each at 5 %, until one fails. A test bets against a mean above the risk (Waudby-Smith and Ramdas
    2024, arXiv 2010.09686) and holds for any number of problems and any law within a bound on the
    excess. Few problems certify little: n of them no risk below some 3 / n of the bound.

    Args:
        candidates: Settings to try, at least one.
        trajectory: The tuning problems.
        unit: What is counted.
        price: c, in units of the loss: least mean excess + c * cost.
        budget: Least mean excess at a mean cost of at most this.
        risk: Least mean cost at a mean excess of at most this, with 95 % confidence.
        bound: The largest excess that a problem can have where it stops; the mean is that of the
            excess held below it. If None, the largest excess of the tuning problems at any step.
        returns: What to try to return; the unit's default alone if None.

    Raises:
        InputError: Not just one of price, budget and risk is given, or no candidate is within it.
    """
    given = {"price": price, "budget": budget, "risk": risk}
    named = [f"{name}={value:g}" for name, value in given.items() if value is not None]
    require(
        len(named) == 1,
        f"give exactly one of price, budget and risk, got {', '.join(named) or 'none'}",
    )
    measured = [
        _measure(StopPolicy(candidate, iterate), decided, trajectory, unit)
        for candidate, decided in decide_all(candidates, trajectory)
        for iterate in returns or RETURNABLE[unit][:1]
    ]
    low, high = min(0.0, trajectory.excess.amin().item()), bound
    high = trajectory.excess.amax().item() if high is None else high

    def excess_of(found: Calibration) -> Tensor:
        decided = decisions(found.policy.rule, trajectory)
        excess = returned_excess(trajectory, decided, unit, found.policy.returns)
        return excess.double().clamp(low, high)

    def bounded(found: Calibration) -> Calibration:
        return replace(found, excess_bound=_mean_bound(excess_of(found), low, high))

    if price is not None:
        c = price
        return bounded(min(measured, key=lambda m: _least(m.mean_j(c))))
    if budget is not None:
        within = [m for m in measured if m.mean_cost <= budget]
        least = min(m.mean_cost for m in measured)
        require(
            len(within) > 0,
            f"no candidate costs at most {budget:g} {unit.value} on average; the least attainable "
            f"is {least:.4g}",
        )
        return bounded(min(within, key=lambda m: (_least(m.mean_excess), m.mean_cost)))
    assert risk is not None
    within = []
    for found in sorted(measured, key=lambda m: (-m.mean_cost, _least(m.mean_excess))):
        if not (risk >= high or _log_wealth(excess_of(found), risk, high) >= _REFUTES):
            break
        within.append(found)
    require(
        len(within) > 0,
        f"{found.num_items} problems cannot certify a mean excess of at most {risk:g} with 95 % "
        f"confidence where a single one may be {high:.4g}: of the most costly candidate they "
        f"certify {bounded(found).excess_bound:.4g}; record more problems, allow a larger risk, or "
        "give a bound, beyond which an excess does not count",
    )
    return bounded(min(within, key=lambda m: (m.mean_cost, m.mean_excess)))


def _measure(
    policy: StopPolicy, decided: Tensor, trajectory: Trajectory, unit: CostUnit
) -> Calibration:
    excess = returned_excess(trajectory, decided, unit, policy.returns).double()
    return Calibration(
        policy,
        unit,
        len(excess),
        mean_excess=excess.mean().item(),
        mean_cost=steps_charged(decided, unit, trajectory.num_steps).double().mean().item(),
        excess_bound=math.nan,
    )


def _mean_bound(values: Tensor, low: float, high: float) -> float:
    """The least mean that bets on values [n] in [low, high] refute at 5 %; `high` if none."""
    refuted, end = high, low
    for _ in range(_NUM_HALVINGS):
        mean = (refuted + end) / 2
        if mean < high and _log_wealth(values, mean, high) >= _REFUTES:
            refuted = mean
        else:
            end = mean
    return refuted


def _log_wealth(values: Tensor, mean: float, high: float) -> float:
    """Logarithm of the wealth won on values [n] of at most `high` by bets against this mean.

    A bet of a share f stakes f / (high - m) a unit: if the mean is m or more, the wealth
    prod_i (1 + f (m - x_i) / (high - m)) is at least 20 with a probability of at most 5 %. It rises
    with m, and so does its mean over several f.
    """
    odds = ((mean - values) / (high - mean)).unsqueeze(1)
    growth = torch.log1p(_SHARES.to(values) * odds).sum(0)
    return growth.logsumexp(0).item() - math.log(len(_SHARES))


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
