"""What every stop rule must satisfy, by itself and composed."""

import math
from dataclasses import replace

import pytest
import torch
from draws import randn
from hypothesis import given
from hypothesis import strategies as st
from stop_rule_cases import (
    COMPOSED,
    COSTS,
    TRAJECTORY,
    N,
    T,
    any_rule,
    every_rule,
    falling_trajectory,
    observe,
    offers_candidates,
    reasons_at_every_step,
    settings,
)
from torch import Tensor

from haltwise import InputError
from haltwise._core.tensors import map_tensors, select_state
from haltwise.processes import StepObservation, Trajectory
from haltwise.stop_rules import (
    GradientNorm,
    HazardThreshold,
    Logistic,
    PonderThreshold,
    PosteriorMode,
    StopRule,
    costs,
    decide_all,
    decisions,
    decisions_and_reasons,
)
from haltwise.testing import check_stop_rule


@every_rule
def test_a_rule_keeps_its_contract(rule: type[StopRule]) -> None:
    spread = settings(rule)
    for setting in spread[:: max(1, len(spread) // 3)]:
        check_stop_rule(setting)


@every_rule
def test_decisions_are_those_of_a_loop_over_one_item(rule: type[StopRule]) -> None:
    for setting in settings(rule):
        expected = []
        for i in range(N):
            memory = select_state(setting.init(N, TRAJECTORY.loss), torch.tensor([i]))
            stopped = T
            for step in range(T):
                observation = observe(TRAJECTORY, step, slice(i, i + 1))
                stop, memory = setting.step(observation, memory)
                if stop.item():
                    stopped = step
                    break
            expected.append(stopped)
        found = decisions(setting, TRAJECTORY)
        assert found.dtype == torch.int64
        assert found.tolist() == expected


@every_rule
def test_many_settings_at_once_decide_as_each_alone(rule: type[StopRule]) -> None:
    """Also mixed, so that those which share a statistic are not neighbours, and with NaN."""
    loss = TRAJECTORY.loss.clone()
    loss[3, 4:] = torch.nan
    for trajectory in (TRAJECTORY, replace(TRAJECTORY, loss=loss)):
        choices = [*settings(rule), *settings(GradientNorm), *settings(rule)[::-1]]
        found = list(decide_all(choices, trajectory))
        assert [setting for setting, _ in found] == choices
        for setting, decided in found:
            assert torch.equal(decided, decisions(setting, trajectory))


def join_at(past: Trajectory, future: Trajectory, step: int) -> Trajectory:
    """The past up to `step`, and another future."""

    def join(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat((one[:, : step + 1], other[:, step + 1 :]), 1)

    assert past.log_grad_norm is not None
    assert future.log_grad_norm is not None
    return Trajectory(
        join(past.loss, future.loss),
        join(past.excess, future.excess),
        join(past.log_grad_norm, future.log_grad_norm),
        outputs={name: join(value, future.outputs[name]) for name, value in past.outputs.items()},
    )


@every_rule
@pytest.mark.parametrize("replacement", ["other curves", "nan"])
def test_the_future_never_changes_a_decision(rule: type[StopRule], replacement: str) -> None:
    future = (
        falling_trajectory(seed=50)
        if replacement == "other curves"
        else map_tensors(TRAJECTORY, lambda value: value * math.nan)
    )
    for setting in settings(rule):
        before = decisions(setting, TRAJECTORY)
        for step in range(T):
            after = decisions(setting, join_at(TRAJECTORY, future, step))
            past = before <= step
            assert torch.equal(after[past], before[past])
            assert (after[~past] > step).all()


@given(rule=any_rule, step=st.integers(0, T - 1), seed=st.integers(0, 1000))
def test_no_decision_up_to_a_step_depends_on_what_comes_after_it(
    rule: StopRule, step: int, seed: int
) -> None:
    scale = 10.0 ** (seed % 5 - 2)
    future = map_tensors(TRAJECTORY, lambda value: scale * randn(*value.shape, seed=seed))
    altered = join_at(TRAJECTORY, future, step)
    found, expected = (reasons_at_every_step(rule, one) for one in (altered, TRAJECTORY))
    assert found[: step + 1] == expected[: step + 1]


@every_rule
def test_the_score_is_never_seen(rule: type[StopRule]) -> None:
    blind = replace(TRAJECTORY, excess=TRAJECTORY.excess * math.nan)
    for setting in settings(rule):
        assert torch.equal(decisions(setting, blind), decisions(setting, TRAJECTORY))


@every_rule
@pytest.mark.parametrize("leave_at", [1, T // 2])
def test_items_that_leave_change_nothing_for_those_that_stay(
    rule: type[StopRule], leave_at: int
) -> None:
    kept = randn(N, seed=leave_at).argsort()[: N // 3]
    for setting in settings(rule):
        whole, part = setting.init(N, TRAJECTORY.loss), {}
        for step in range(T):
            if step == leave_at:
                part = select_state(whole, kept)
            stop, whole = setting.step(observe(TRAJECTORY, step, slice(None)), whole)
            if step >= leave_at:
                rest = observe(TRAJECTORY.select(kept), step, slice(None))
                fewer, part = setting.step(rest, part)
                assert torch.equal(fewer, stop[kept])
                assert torch.equal(setting.why(fewer, part), setting.why(stop, whole)[kept])


@every_rule
def test_every_rule_gives_its_reason(rule: type[StopRule]) -> None:
    for setting in settings(rule):
        decided, reason = decisions_and_reasons(setting, TRAJECTORY)
        assert torch.equal(reason >= 0, decided < T)
        assert int(reason.max()) < len(setting.reasons)
        assert not any(type(setting).__name__ in words for words in setting.reasons)


# --- Candidates ----------------------------------------------------------------------------------


@every_rule
def test_candidates_are_rules_that_differ(rule: type[StopRule]) -> None:
    if not offers_candidates(rule):
        with pytest.raises(InputError, match=f"{rule.__name__} has no candidates"):
            rule.candidates(TRAJECTORY, COSTS)
        return
    found = rule.candidates(TRAJECTORY, COSTS)
    assert all(type(setting) is rule for setting in found)
    assert len(set(found)) == len(found)  # none is tried twice
    stops = torch.stack([decisions(setting, TRAJECTORY) for setting in found])
    assert len(stops.unique(dim=0)) > T / 2
    assert stops.double().mean(1).max() > T - 2  # from hardly ever ...
    if rule is not PosteriorMode:  # whose settings only put off the first mode
        assert stops.double().mean(1).min() < 3  # ... to nearly at once


@every_rule
def test_candidates_serve_trajectories_of_items_that_diverged(rule: type[StopRule]) -> None:
    def spoil(value: Tensor) -> Tensor:
        spoilt = value.clone()
        spoilt[0, 5:] = math.nan
        spoilt[1, 6:] = math.inf if value.ndim == 2 else math.nan
        return spoilt

    trajectory = map_tensors(TRAJECTORY, spoil)
    if not offers_candidates(rule):
        return
    found = rule.candidates(trajectory, costs(trajectory.excess, 0.2))
    assert len(found) > T / 2
    for setting in found[::20]:
        decided, expected = (decisions(setting, one)[2:] for one in (trajectory, TRAJECTORY))
        assert torch.equal(decided, expected)


LOSSES_ALONE = Trajectory(TRAJECTORY.loss, TRAJECTORY.excess)
NEEDS: dict[type[StopRule], str] = {
    GradientNorm: "log_grad_norm",
    Logistic: "log_grad_norm",
    HazardThreshold: "hazard_logits",
    PonderThreshold: "halting_logits",
    PosteriorMode: "increments",
}


@every_rule
def test_a_rule_does_with_losses_alone_or_says_what_it_lacks(rule: type[StopRule]) -> None:
    if rule in COMPOSED:
        return
    setting = settings(rule)[0]
    if rule not in NEEDS:
        assert torch.equal(decisions(setting, LOSSES_ALONE), decisions(setting, TRAJECTORY))
        assert rule.candidates(LOSSES_ALONE, COSTS) == rule.candidates(TRAJECTORY, COSTS)
        return
    with pytest.raises(InputError, match=f"{NEEDS[rule]} is needed"):
        decisions(setting, LOSSES_ALONE)
    with pytest.raises(InputError, match=f"{NEEDS[rule]}|has no candidates"):
        rule.candidates(LOSSES_ALONE, COSTS)


def test_a_step_observation_needs_no_more_than_a_step_and_a_loss() -> None:
    observation = StepObservation(3, torch.ones(2))
    assert observation.known("loss").tolist() == [1, 1]
    with pytest.raises(InputError, match="readout is needed here"):
        observation.known("readout")
    with pytest.raises(InputError, match="hazard_logits is needed here"):
        observation.known("hazard_logits")
