"""Baselines are tuned on other items than they are judged on, and are offered what all are."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from stopping_cases import DOUBLE, GROUPS, LOSSES, PRICE, STEPS, N, T, judged

from haltwise import FunctionBatch
from haltwise._core.random import stream
from haltwise.evaluation import learners, optimizers
from haltwise.evaluation.baselines import _halves, cross_fit
from haltwise.evaluation.judge import Stops
from haltwise.evaluation.learners import LEARNERS, _best_now, learned_baselines
from haltwise.evaluation.optimizers import (
    HAND_DESIGNED,
    LEARNING_RATES,
    lbfgs_curve,
    loss_curves,
    tune_rule,
)
from haltwise.processes import Trajectory
from haltwise.rollout import record
from haltwise.stop_rules import (
    BASELINES,
    RETURNABLE,
    CostUnit,
    Patience,
    ReturnedIterate,
    choose,
    decisions,
    returned_steps,
    total_cost,
    tune_baselines,
)
from haltwise.tasks import family
from haltwise.update_rules import SGD, Adam

both_units = pytest.mark.parametrize("unit", CostUnit)


def noisy(num: int = 300, seed: int = 0) -> Trajectory:
    """Losses observed with noise, so that the best iterate seen is worth returning."""
    rate = torch.rand(num, 1, generator=stream(seed, "rate"), dtype=DOUBLE) + 0.1
    excess = 4 * torch.exp(-rate * STEPS) + 0.3 * torch.rand(
        num, T + 1, generator=stream(seed, "excess"), dtype=DOUBLE
    )
    norm = excess.log() + 0.1 * torch.randn(
        num, T + 1, generator=stream(seed, "norm"), dtype=DOUBLE
    )
    return Trajectory(excess.clone(), excess, log_grad_norm=norm)


@both_units
def test_a_tuned_baseline_is_the_best_of_its_candidates_and_of_what_it_may_return(
    unit: CostUnit,
) -> None:
    trajectory = noisy()
    found = tune_baselines(trajectory, unit, PRICE)
    assert set(found) == set(BASELINES)
    table = trajectory.excess + PRICE * STEPS
    offered = [returns for returns in RETURNABLE[unit] if returns is not ReturnedIterate.LEARNED]
    for name, tuned in found.items():
        rule, returns = tuned.policy
        j = {
            (candidate, each): total_cost(
                trajectory, decisions(candidate, trajectory), unit, each, price=PRICE
            ).mean()
            for candidate in BASELINES[name].candidates(trajectory, table)[::7]
            for each in offered
        }
        own = total_cost(trajectory, decisions(rule, trajectory), unit, returns, price=PRICE).mean()
        assert own <= min(j.values()) + 1e-12, name


def test_baselines_that_need_gradients_are_left_out_where_there_are_none() -> None:
    losses = Trajectory(LOSSES, LOSSES)
    assert set(tune_baselines(losses, CostUnit.UPDATES, PRICE)) == {"plateau", "patience"}
    constant = Trajectory(LOSSES, LOSSES, log_grad_norm=torch.full_like(LOSSES, -103.0))
    found = set(tune_baselines(constant, CostUnit.UPDATES, PRICE))
    assert found == {"plateau", "patience", "logistic"}


@both_units
def test_cross_fitted_stops_come_from_the_rule_tuned_on_the_other_half(unit: CostUnit) -> None:
    trajectory = Trajectory(LOSSES, LOSSES)
    found = cross_fit(trajectory, unit, PRICE, stream(5))
    assert set(found) == {"fixed_tuned", "plateau", "patience"}
    half = torch.empty(N, dtype=torch.int64)
    half[torch.randperm(N, generator=stream(5))] = torch.arange(N) % 2
    for side in (0, 1):
        tuned_on, judged_on = ((half == s).nonzero().squeeze(1) for s in (side, 1 - side))
        policy = tune_baselines(trajectory.select(tuned_on), unit, PRICE)["patience"].policy
        test = trajectory.select(judged_on)
        j = total_cost(test, decisions(policy.rule, test), unit, policy.returns, price=PRICE)
        torch.testing.assert_close(found["patience"].j(PRICE)[judged_on], j)


def test_halves_are_halves_of_every_group() -> None:
    half = _halves(N, stream(1), GROUPS - 10)
    assert half.sum() == N // 2
    for group in range(10, 16):
        assert half[group == GROUPS].sum() == 5
    assert not torch.equal(half, _halves(N, stream(2), GROUPS - 10))


def test_cross_fitting_pays_for_what_hindsight_does_not() -> None:
    """Pure noise: a budget that is best on one half is no better than any on the other."""
    noise = torch.randn(40, 30, generator=stream(11), dtype=DOUBLE)
    record = judged(
        noise,
        torch.zeros(40, dtype=torch.int64),
        price=1e-6,
        baselines=True,
        observed=torch.arange(30, 0, -1).expand(40, 30).double(),  # the last is thought best
    )
    assert record.rules["fixed_tuned"].j.value > record.rules["fixed"].j.value + 0.1


def test_baselines_see_what_is_observed() -> None:
    blind = judged(baselines=True, observed=torch.zeros_like(LOSSES)).rules
    seeing = judged(baselines=True).rules
    assert blind["patience"].j.value > seeing["patience"].j.value


def test_baselines_may_return_the_best_iterate_as_the_stops_judged_do() -> None:
    """The same rule, tuned the same way, must not beat itself."""
    rule, source = Adam(0.15, beta2=0.95), family("regression-10d-plain")
    tuning, test = (record(rule, source.sample(600, stream(777, k)), 60) for k in (1, 2))
    unit, best = CostUnit.UPDATES, ReturnedIterate.BEST
    candidates = Patience.candidates(tuning, tuning.excess)
    chosen = choose(candidates, tuning, unit, price=0.0527, returns=(best,)).policy.rule
    decided = decisions(chosen, test)
    found = judged(
        test.excess,
        decided,
        price=0.0527,
        returned=returned_steps(decided, test, best),
        observed=test.loss,
        baselines=True,
    )
    assert "returns best" in found.rules["patience"].policy
    assert abs(found.rules["patience"].difference.value) < 0.01 * found.stops.j.value


# ------------------------------------------------------------------------------------ optimizers


def test_learning_rates_are_a_fine_wide_grid() -> None:
    assert len(LEARNING_RATES) >= 8
    assert all(b / a <= 2 for a, b in itertools.pairwise(LEARNING_RATES))


@pytest.mark.parametrize("num_problems", [10, 30])
@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_a_tuned_rule_is_the_best_of_the_grid(
    monkeypatch: pytest.MonkeyPatch, name: str, num_problems: int
) -> None:
    monkeypatch.setattr(optimizers, "_TUNING_COORDINATES", 100)  # ten problems are enough
    batch = family("quadratic-10d").sample(num_problems, stream(0))
    tuned = tune_rule(HAND_DESIGNED[name], batch, 10)
    some = batch.select(torch.arange(10))
    best = min(
        (mean, rate)
        for rate in LEARNING_RATES
        if not math.isnan(
            mean := float(
                loss_curves(HAND_DESIGNED[name](rate), some, 10).excess[:, 1:].double().mean()
            )
        )
    )
    assert tuned.learning_rate == best[1]
    assert not tuned.at_edge


@pytest.mark.parametrize(
    ("curvature", "rate"), [(1e-4, LEARNING_RATES[-1]), (1e5, LEARNING_RATES[0]), (1.0, 1.0)]
)
def test_a_rate_at_an_end_of_the_grid_is_said_to_be_there(curvature: float, rate: float) -> None:
    """Of a parabola the best rate is one over its curvature; a wider grid might do better."""
    batch = FunctionBatch(torch.ones(4, 1), lambda x: curvature * x.square().sum(1) / 2)
    tuned = tune_rule(SGD, batch, 10)
    assert tuned.learning_rate == pytest.approx(rate)
    assert tuned.at_edge is (rate != 1.0)


def test_curves_without_signals_are_those_of_a_recording() -> None:
    batch = family("regression-10d-plain").sample(5, stream(1))
    alone, recorded = loss_curves(Adam(0.1), batch, 12), record(Adam(0.1), batch, 12)
    assert torch.equal(alone.excess, recorded.excess)
    assert torch.equal(alone.loss, recorded.loss)
    assert alone.final is not None
    assert recorded.final is not None
    assert torch.equal(alone.final, recorded.final)


def test_lbfgs_solves_a_quadratic_within_the_budget_it_is_charged_for() -> None:
    batch = family("regression-10d-plain").sample(3, stream(0), dtype=torch.float64)
    curve = lbfgs_curve(batch, 60)
    assert curve.shape == (3, 61)
    assert torch.equal(curve[:, 0], curve[:, 1])  # the first evaluation is at theta_0
    assert (curve.diff(dim=1) <= 0).all()
    assert (curve[:, -1] < 1e-9 * curve[:, 0]).all()


def test_hand_designed_optimizers_are_those_of_torch() -> None:
    """Two steps with gradients 1 and 2 at a rate of .1; momentum .9 where there is any."""
    second = {"sgd": -0.2, "nesterov": -0.1 * (2 + 0.9 * (0.9 + 2))}
    for name, expected in second.items():
        rule = HAND_DESIGNED[name](0.1)
        state, update = rule.init(torch.zeros(1, 1, dtype=DOUBLE)), torch.zeros(1)
        for grad in (1.0, 2.0):
            update, _, state = rule.update(torch.full((1, 1), grad, dtype=DOUBLE), state)
        assert update.item() == pytest.approx(expected)


def test_learners_are_told_where_no_later_step_is_worth_its_price() -> None:
    run = Trajectory(torch.zeros(1, 5), torch.tensor([[3.0, 1.0, 0.9, 0.0, 0.0]], dtype=DOUBLE))
    assert _best_now(run, 0.2).tolist() == [[False, False, False, True]]
    assert _best_now(run, 0.6).tolist() == [[False, True, False, True]]


def test_learners_on_all_signals_beat_simple_rules_and_are_blind_to_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of Adam, which oscillates; labels of other test items change no stop."""
    rule, source, price = Adam(0.15, beta2=0.95), family("regression-10d-plain"), 0.0527
    tuning, test = (record(rule, source.sample(200, stream(777, k)), 30) for k in (1, 2))
    unit = CostUnit.GRADIENTS
    # Half the trees are ahead already, and take half the time.
    monkeypatch.setattr(learners, "_NUM_TREES", {"boosted_trees": 25, "value_trees": 40})
    found = learned_baselines(tuning, test, [unit], price)[unit]
    simple = tune_baselines(tuning, unit, price).values()
    least = min(Stops.by(each.policy, test, unit).j(price).mean().item() for each in simple)
    assert tuple(found) == LEARNERS
    for name, stops in found.items():
        assert stops.j(price).mean().item() < least, name
    # Very few are as blind as many.
    monkeypatch.setattr(learners, "_NUM_TREES", dict.fromkeys(learners._NUM_TREES, 5))
    tests = test, replace(test, excess=-test.excess)
    seeing, blind = (learned_baselines(tuning, each, [unit], price)[unit] for each in tests)
    for name in LEARNERS:
        assert torch.equal(seeing[name].cost, blind[name].cost)
    few = tuning.select(torch.arange(49))
    assert learned_baselines(few, test, CostUnit, price) == {unit: {} for unit in CostUnit}


def test_problems_that_begin_at_nan_hide_nothing_of_the_others() -> None:
    """Neither the rate that is best nor what L-BFGS makes of them."""
    start = torch.randn(6, 2, generator=stream(3), dtype=DOUBLE)
    away = torch.tensor([0, 0, math.nan, 0, 0, math.inf], dtype=DOUBLE)
    whole = FunctionBatch(start, lambda params, away: params.square().sum(1) + away, {"away": away})
    kept = whole.select(torch.tensor([0, 1, 3, 4]))
    found, expected = lbfgs_curve(whole, 6), lbfgs_curve(kept, 6)
    torch.testing.assert_close(found[[0, 1, 3, 4]], expected)
    assert found[[2, 5]].isinf().all()
    make = HAND_DESIGNED["adam"]
    assert tune_rule(make, whole, 5).learning_rate == tune_rule(make, kept, 5).learning_rate
