"""Calibration against brute force over candidates, and what it refuses or warns of."""

import math
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple

import pytest
import torch
from draws import DOUBLE, randn
from stop_rule_cases import (
    BEFORE,
    COMPOSED,
    COSTS,
    KINDS,
    TRAJECTORY,
    N,
    T,
    falling_trajectory,
)

from haltwise import InputError
from haltwise._core.errors import CalibrationWarning
from haltwise.processes import Trajectory
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Logistic,
    Patience,
    Plateau,
    PonderThreshold,
    PosteriorMode,
    ReturnedIterate,
    StopRule,
    calibrate,
    choose,
    costs,
    decisions,
)

MANY = falling_trajectory(seed=9, num=72)
TUNABLE = [rule for rule in KINDS if rule not in (*COMPOSED, PonderThreshold, PosteriorMode)]


# --- Candidates ----------------------------------------------------------------------------------


def test_fixed_budgets_are_all_tried() -> None:
    assert FixedBudget.candidates(TRAJECTORY, COSTS) == [FixedBudget(n) for n in range(T + 1)]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("kind", [Plateau, GradientNorm, Logistic, HazardThreshold])
def test_going_on_to_the_end_is_tried(
    kind: type[StopRule], scale: float, dtype: torch.dtype
) -> None:
    """The largest statistic is that of the first step, the same for all; the last pays for all."""
    loss = scale * torch.tensor([[3.0, 3.0, 2.9, 0.0], [3.0, 3.0, 2.8, 0.0]], dtype=dtype)
    logits = scale * torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 1.0]], dtype=dtype)
    trajectory = Trajectory(
        loss,
        loss,
        log_grad_norm=scale * torch.tensor([[-9.0, 1.0, 2.0, 3.0]] * 2, dtype=dtype),
        outputs={"hazard_logits": torch.stack((logits, logits), -1)},
    )
    rules = kind.candidates(trajectory, costs(loss, 0.01 * scale))
    best = choose(rules, trajectory, CostUnit.UPDATES, price=0.01 * scale)
    assert decisions(best.policy.rule, trajectory).tolist() == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_fitted_logistic_rule_finds_the_step_that_pays(dtype: torch.dtype) -> None:
    """Rates and sizes differ by item; a step pays until the signal falls below the price."""
    steps, price = torch.arange(31, dtype=DOUBLE), 0.02
    rate = torch.linspace(0.2, 1.5, 60, dtype=DOUBLE)[:, None]
    excess = (2 * randn(60, 1)).exp() * torch.exp(-rate * steps)
    signal = 0.01 * (excess * (1 - torch.exp(-rate))).log()  # no unit is better than another
    noisy = excess + randn(60, 31, seed=3).abs()
    loss, scored, norm = (value.to(dtype) for value in (noisy, excess, signal))
    tuning, test = (Trajectory(loss[half::2], scored[half::2], norm[half::2]) for half in (0, 1))
    table, test_table = costs(tuning.excess, price), costs(test.excess, price)

    def tuned(rule: type[StopRule]) -> float:
        found = rule.candidates(tuning, table)
        best = choose(found, tuning, CostUnit.UPDATES, price=price).policy.rule
        return test_table.gather(1, decisions(best, test)[:, None]).mean().item()

    oracle, fixed = test_table.amin(1).mean().item(), tuned(FixedBudget)
    assert fixed - oracle > 0.05  # there is something to gain
    assert tuned(Logistic) - oracle < 0.05 * (fixed - oracle)


@pytest.mark.parametrize(("slope", "stop"), [(1.0, 0), (-1.0, T)])
def test_a_logistic_rule_with_one_label_always_or_never_stops(slope: float, stop: int) -> None:
    (rule,) = Logistic.candidates(TRAJECTORY, slope * torch.arange(T + 1.0).expand(N, -1))
    assert decisions(rule, TRAJECTORY).tolist() == [stop] * N


def test_thresholds_need_a_finite_value() -> None:
    hopeless = replace(TRAJECTORY, log_grad_norm=TRAJECTORY.known("log_grad_norm") * math.nan)
    with pytest.raises(InputError, match="no finite value"):
        GradientNorm.candidates(hopeless, COSTS)


# --- Brute force ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", CostUnit)
def test_the_candidate_that_costs_least_is_chosen(unit: CostUnit) -> None:
    candidates = [GradientNorm(level / 2) for level in range(-8, 8)]
    shift = unit is CostUnit.GRADIENTS
    means = []
    for candidate in candidates:
        stops = decisions(candidate, TRAJECTORY).tolist()
        means.append(sum(COSTS[i, min(stop + shift, T)].item() for i, stop in enumerate(stops)))
    best = min(range(len(candidates)), key=means.__getitem__)
    assert 0 < best < len(candidates) - 1
    found = choose(iter(candidates), TRAJECTORY, unit, price=0.2)
    assert found.policy.rule == candidates[best]


def test_a_candidate_without_a_number_comes_last() -> None:
    """The excess is NaN at step 0, which one of two budgets returns, whatever their order."""
    excess = TRAJECTORY.excess.clone()
    excess[:, 0] = math.nan
    blind = replace(TRAJECTORY, excess=excess)
    for budgets in ((0, 2), (2, 0)):
        for price, budget in ((0.2, None), (None, 5.0)):
            found = choose(
                map(FixedBudget, budgets), blind, CostUnit.UPDATES, price=price, budget=budget
            )
            assert found.policy.rule == FixedBudget(2)


class Reached(NamedTuple):
    """What a candidate reached, by plain loops."""

    rule: StopRule
    returns: ReturnedIterate
    excess: float
    cost: float


@cache
def stops_on_many(rule: StopRule) -> list[int]:
    stops: list[int] = decisions(rule, MANY).tolist()
    return stops


@cache
def reach(rule: StopRule, returns: ReturnedIterate, unit: CostUnit) -> Reached:
    losses, scored = MANY.loss.tolist(), MANY.excess.tolist()
    hold = MANY.known("hold_logits").tolist()
    excess, cost = [], []
    for i, t in enumerate(stops_on_many(rule)):
        after = min(t + 1, T)
        end = {
            ReturnedIterate.NEXT: after,
            ReturnedIterate.CURRENT: t,
            ReturnedIterate.BEST: min(range(min(t, T - 1) + 1), key=losses[i].__getitem__),
            ReturnedIterate.LEARNED: t if t < T and hold[i][t] > 0 else after,
        }[returns]
        excess.append(scored[i][end])
        cost.append(after if unit is CostUnit.GRADIENTS else t)
    return Reached(rule, returns, fmean(excess), fmean(cost))


@pytest.mark.parametrize("unit", CostUnit)
@pytest.mark.parametrize("rule", TUNABLE, ids=lambda rule: rule.__name__)
def test_calibration_is_brute_force_over_candidates(rule: type[StopRule], unit: CostUnit) -> None:
    gain = (MANY.excess.mean(0)[0] - MANY.excess.mean(0).min()).item() / T
    for name, level in (("price", 0.3), ("budget", 6.0)):
        table = costs(MANY.excess, level if name == "price" else gain)
        tried = [
            reach(setting, returns, unit)
            for setting in rule.candidates(MANY, table)
            for returns in RETURNABLE[unit]
        ]
        if name == "price":
            best = min(tried, key=lambda r: r.excess + 0.3 * r.cost)
        else:
            best = min((r for r in tried if r.cost <= 6), key=lambda r: (r.excess, r.cost))
        wanted: dict[str, Any] = {name: level}
        found = calibrate(rule, MANY, unit=unit, returns=RETURNABLE[unit], **wanted)
        assert found.mean_excess == pytest.approx(best.excess)
        assert found.mean_cost == pytest.approx(best.cost)
        assert (found.unit, found.num_items) == (unit, 72)
        again = reach(*found.policy, unit)
        assert (again.excess, again.cost) == pytest.approx((best.excess, best.cost))


def test_a_rule_is_calibrated_at_the_time_of_decision_that_is_asked_for() -> None:
    found = calibrate(HazardThreshold, MANY, price=0.3, unit=CostUnit.GRADIENTS, time=BEFORE)
    assert isinstance(found.policy.rule, HazardThreshold)
    assert found.policy.rule.time == BEFORE
    assert found.policy.returns is ReturnedIterate.NEXT
    assert calibrate(HazardThreshold, MANY, price=0.3).policy.returns is ReturnedIterate.CURRENT


# --- What is refused or warned of ----------------------------------------------------------------


@pytest.mark.parametrize("wanted", [{}, {"price": 1.0, "budget": 2.0}])
def test_just_one_thing_can_be_wanted(wanted: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="exactly one of price and budget"):
        calibrate(Patience, MANY, **wanted)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"price": -1.0}, "price must be a finite number above 0, got -1"),
        ({"price": math.nan}, "price must be a finite number above 0, got nan"),
        ({"budget": "ten"}, "budget must be a single real number, got 'ten'"),
        ({"price": 1.0, "unit": "updates"}, "unit must be CostUnit.UPDATES or .* got 'updates'"),
        ({"price": 1.0, "returns": ReturnedIterate.BEST}, "returns must be a tuple"),
        ({"price": 1.0, "trajectory": MANY.loss}, "trajectory must be a Trajectory, .* got shape"),
    ],
)
def test_what_cannot_be_wanted_is_refused(wanted: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        calibrate(Patience, **{"trajectory": MANY, **wanted})


@pytest.mark.parametrize("unit", CostUnit)
def test_losses_without_a_step_are_refused(unit: CostUnit) -> None:
    start = Trajectory(MANY.loss[:, :1], MANY.excess[:, :1])
    with pytest.raises(InputError, match="no step to stop at"):
        calibrate(FixedBudget, start, price=0.1, unit=unit)
    with pytest.raises(InputError, match="no step to stop at"):
        choose([FixedBudget(0)], start, unit, price=0.1, returns=(ReturnedIterate.BEST,))


def test_too_few_items_are_refused() -> None:
    with pytest.raises(InputError, match="at least 50 problems, got 49"):
        calibrate(Patience, MANY.select(torch.arange(49)), price=0.1)
    assert calibrate(Patience, MANY.select(torch.arange(50)), price=0.1).num_items == 50


def test_what_no_candidate_reaches_is_refused_with_the_best_there_is() -> None:
    least = reach(FixedBudget(0), ReturnedIterate.NEXT, CostUnit.GRADIENTS).cost
    with pytest.raises(InputError, match=f"at most 0.5 gradients .* attainable is {least:.4g}"):
        calibrate(FixedBudget, MANY, budget=0.5, unit=CostUnit.GRADIENTS)


def test_items_that_diverged_are_left_out_and_counted() -> None:
    excess = MANY.excess.clone()
    excess[3, 5], excess[70, 12] = math.nan, math.inf
    spoilt = replace(MANY, excess=excess)
    kept = torch.tensor([i for i in range(72) if i not in (3, 70)])
    with pytest.warns(CalibrationWarning, match="2 of 72 problems are left out"):
        found = calibrate(GradientNorm, spoilt, price=0.3)
    assert found == calibrate(GradientNorm, MANY.select(kept), price=0.3)
    few = spoilt.select(torch.arange(50))
    with (
        pytest.warns(CalibrationWarning, match="1 of 50"),
        pytest.raises(InputError, match="got 49"),
    ):
        calibrate(GradientNorm, few, price=0.3)


@pytest.mark.parametrize(("unit", "enough"), [(CostUnit.UPDATES, 3), (CostUnit.GRADIENTS, 2)])
def test_a_price_at_which_nothing_is_worth_computing_is_warned_of(
    unit: CostUnit, enough: float
) -> None:
    """The first step gains 3, every later one 2; the first gradient is paid for at any price."""
    loss = (40.0 - 2 * torch.arange(13, dtype=DOUBLE)).expand(60, -1).clone()
    loss[:, 0] += 1
    trajectory = Trajectory(loss, loss)
    with pytest.warns(CalibrationWarning, match="every one of the 60 problems is best stopped"):
        found = calibrate(FixedBudget, trajectory, price=enough + 0.01, unit=unit)
    assert found.policy.rule == FixedBudget(0)
    found = calibrate(FixedBudget, trajectory, price=enough - 0.01, unit=unit)  # no warning
    assert found.policy.rule != FixedBudget(0)
    loss[7, 5] = -30.0  # one item is worth going on for
    calibrate(FixedBudget, trajectory, price=enough + 0.01, unit=unit)


def test_a_first_step_that_rises_may_be_taken_back() -> None:
    """A stop at once returns theta_0 for the gradient paid there; the next iterate is far worse."""
    loss = torch.tensor([0.0, 5.0, 1.0, 0.0], dtype=DOUBLE).expand(60, -1)
    with pytest.warns(CalibrationWarning, match="every one of the 60 problems is best stopped"):
        calibrate(FixedBudget, Trajectory(loss, loss), price=0.1, unit=CostUnit.GRADIENTS)
