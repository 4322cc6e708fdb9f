"""Plans by EM and by value iteration, beside policies tried one by one and horizons summed up."""

import itertools
import math
from typing import Any

import pytest
import torch
from chains import maze, random_chain
from draws import DOUBLE, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.planning import (
    FiniteMDP,
    as_decision_process,
    expectation_maximization,
    optimal_stopping,
    value_iteration,
)
from haltwise.processes.markov_chain import MarkovChainFamily

GAMMA = 0.95


def random_process(seed: int, num_actions: int = 3, num_states: int = 4) -> FiniteMDP:
    generator = seeded(seed)
    shape = (num_actions, num_states, num_states)
    transition = torch.rand(shape, generator=generator, dtype=DOUBLE)
    reward = torch.rand(shape[:2], generator=generator, dtype=DOUBLE)
    return FiniteMDP(transition / transition.sum(-1, keepdim=True), reward)


def step(mdp: FiniteMDP, policy: Tensor) -> tuple[Tensor, Tensor]:
    """The chain [S, S] and the rewards [S] under a policy, by loops."""
    num_actions, num_states = policy.shape
    chain, reward = torch.zeros(num_states, num_states, dtype=DOUBLE), torch.zeros(num_states)
    reward = reward.to(DOUBLE)
    for action in range(num_actions):
        for state in range(num_states):
            chain[state] += policy[action, state] * mdp.transition[action, state]
            reward[state] += policy[action, state] * mdp.reward[action, state]
    return chain, reward


def summed_horizons(mdp: FiniteMDP, policy: Tensor, start: Tensor, num: int = 2000) -> float:
    """P(R = 1) = sum_T p(T) E[reward_T], a horizon after the other."""
    chain, reward = step(mdp, policy)
    total = 0.0
    for horizon in range(num):
        total += (1 - GAMMA) * GAMMA**horizon * (start @ reward).item()
        start = start @ chain
    return total


@pytest.mark.parametrize("seed", range(3))
def test_value_iteration_is_the_best_of_all_policies(seed: int) -> None:
    mdp = random_process(seed)
    best = torch.full((4,), -torch.inf, dtype=DOUBLE)
    for choice in itertools.product(range(3), repeat=4):
        policy = torch.nn.functional.one_hot(torch.tensor(choice), 3).T.to(DOUBLE)
        chain, reward = step(mdp, policy)
        value = torch.linalg.solve(torch.eye(4, dtype=DOUBLE) - GAMMA * chain, reward)
        best = torch.maximum(best, value)
    assert_close(value_iteration(mdp, GAMMA), best, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_em_is_value_iteration_in_random_mazes(seed: int) -> None:
    mdp = maze(seed)
    plan = expectation_maximization(mdp, GAMMA, greedy=True)
    best = value_iteration(mdp, GAMMA, tolerance=1e-15)
    assert_close(plan.value, best, rtol=1e-12, atol=1e-12)
    assert (plan.log_likelihoods.diff() >= -1e-12).all()


@pytest.mark.parametrize("seed", range(5))
def test_soft_em_never_falls_and_comes_within_one_percent(seed: int) -> None:
    mdp = maze(seed)
    plan = expectation_maximization(mdp, GAMMA, num_iterations=200)
    assert len(plan.log_likelihoods) == 201
    assert (plan.log_likelihoods.diff() >= -1e-12).all()
    assert_close(plan.policy.sum(0), torch.ones_like(plan.value))
    reached = plan.value.mean() / value_iteration(mdp, GAMMA).mean()
    assert 0.99 < reached <= 1 + 1e-12


def test_the_likelihood_is_that_of_the_mixture_of_horizons() -> None:
    mdp = random_process(7)
    start = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)
    plan = expectation_maximization(mdp, GAMMA, start=start, num_iterations=3)
    expected = math.log(summed_horizons(mdp, plan.policy, start))
    assert plan.log_likelihoods[-1].item() == pytest.approx(expected, rel=1e-12)


def test_an_m_step_weighs_actions_by_forward_and_backward_messages() -> None:
    """One iteration, with the messages of every horizon in full (Toussaint & Storkey 2006)."""
    mdp, num = random_process(3), 1200
    policy = torch.full((3, 4), 1 / 3, dtype=DOUBLE)
    chain, reward = step(mdp, policy)
    forward, backward = [torch.full((4,), 0.25, dtype=DOUBLE)], [reward]
    for _ in range(num):
        forward.append(forward[-1] @ chain)
        backward.append(chain @ backward[-1])
    counts = torch.zeros(3, 4, dtype=DOUBLE)
    # P(T, action in state at t, R = 1): reached by t, and rewarded T - t steps later.
    reached = sum((GAMMA**t * each for t, each in enumerate(forward)), torch.zeros(4))
    later = sum((GAMMA ** (k + 1) * each for k, each in enumerate(backward)), torch.zeros(4))
    for action in range(3):
        for state in range(4):
            rewarded = mdp.reward[action, state] + mdp.transition[action, state] @ later
            counts[action, state] = policy[action, state] * reached[state] * rewarded
    found = expectation_maximization(mdp, GAMMA, num_iterations=1).policy
    assert_close(found, counts / counts.sum(0), rtol=1e-12, atol=0)


def test_a_state_without_reward_keeps_its_policy() -> None:
    transition = torch.eye(2, dtype=DOUBLE).expand(2, 2, 2)
    reward = torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=DOUBLE)
    plan = expectation_maximization(FiniteMDP(transition, reward), 0.5, num_iterations=50)
    assert plan.policy[:, 1].tolist() == [0.5, 0.5]
    assert plan.policy[1, 0] < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_thresholded_em_stops_as_dynamic_programming_does(temperature: float) -> None:
    family = MarkovChainFamily()
    transition, losses = family.transition(), family.losses()
    mdp, ratio = as_decision_process(transition, losses, 0.02, temperature)
    plan = expectation_maximization(mdp, ratio, num_iterations=2000)
    best = optimal_stopping(transition, losses, 0.02)
    assert torch.equal(plan.policy[1, :-1] > 0.5, best.stop[0])
    assert (plan.log_likelihoods.diff() >= -1e-12).all()


def test_at_a_low_temperature_em_stops_a_state_later() -> None:
    family = MarkovChainFamily()
    transition, losses = family.transition(), family.losses()
    mdp, ratio = as_decision_process(transition, losses, 0.02, 0.3)
    stop = expectation_maximization(mdp, ratio, num_iterations=2000).policy[1, :-1] > 0.5
    assert int(stop.byte().argmax()) == 9
    matrix = torch.eye(40, dtype=DOUBLE) - transition * ~stop.unsqueeze(1)
    cost = torch.linalg.solve(matrix, torch.where(stop, losses, 0.02))
    assert cost[0].item() == pytest.approx(0.50135, abs=5e-6)


def test_em_seeks_risks_at_low_temperatures() -> None:
    """What it maximises is at least the expected cost (Jensen), and nears it as tau grows."""
    transition, losses = random_chain(1, 6)
    best = optimal_stopping(transition, losses, 0.05)
    gaps = []
    for temperature in (0.1, 1.0, 10.0, 100.0):
        mdp, ratio = as_decision_process(transition, losses, 0.05, temperature)
        plan = expectation_maximization(mdp, ratio, greedy=True)
        gap = best.value + temperature * plan.value[:-1].log()
        assert (gap >= -1e-12).all()
        gaps.append(gap.max().item())
    assert all(later < gap for gap, later in itertools.pairwise(gaps))
    assert gaps[-1] < 1e-3


@pytest.mark.parametrize("greedy", [True, False])
def test_where_nothing_is_ever_earned_all_policies_stay(*, greedy: bool) -> None:
    transition, reward = random_process(0)
    plan = expectation_maximization(FiniteMDP(transition, 0 * reward), 0.5, greedy=greedy)
    assert_close(plan.policy, torch.full((3, 4), 1 / 3, dtype=DOUBLE), rtol=0, atol=0)


def test_what_is_no_process_is_named() -> None:
    transition, reward = random_process(0)
    wrong: Any
    for wrong, sentence in (
        ((transition, reward), r"must be a FiniteMDP\(transition, reward\), got tuple"),
        (FiniteMDP(transition, reward.float()), "of one floating-point dtype .* got torch.float64"),
        (FiniteMDP(transition.long(), reward.long()), "of one floating-point dtype .* torch.int64"),
        (FiniteMDP(transition.numpy(), reward), "transition must be a tensor, got ndarray"),  # type: ignore[arg-type]
        (
            FiniteMDP(transition[:, :0, :0], reward[:, :0]),
            "transition must hold numbers",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            value_iteration(wrong, 0.5)
    settings: Any
    for settings, sentence in (
        ({"start": torch.full((4,), 0.5, dtype=DOUBLE)}, "sum to 1; the least is 0.5, and .* 2"),
        ({"start": torch.full((4,), 0.25)}, "start must be a tensor of torch.float64 in shape"),
        ({"num_iterations": -1}, "num_iterations must be at least 0, got -1"),
        ({"num_iterations": 1.5}, "num_iterations must be a whole number, got 1.5"),
    ):
        with pytest.raises(InputError, match=sentence):
            expectation_maximization(FiniteMDP(transition, reward), 0.5, **settings)
    anything: Any = "0.5"
    with pytest.raises(InputError, match="continuation must be a single real number"):
        value_iteration(FiniteMDP(transition, reward), anything)
    chain, losses = random_chain(0, 3)
    with pytest.raises(InputError, match="losses must not be below 0, got -"):
        as_decision_process(chain, losses - 10, 0.1, 1.0)
    with pytest.raises(InputError, match="is 0 to rounding; choose a higher one"):
        as_decision_process(chain, losses.abs() + 1, 0.1, 1e-4)


def test_what_is_impossible_is_refused() -> None:
    mdp = random_process(0)
    for wrong, gamma, sentence in (
        (FiniteMDP(mdp.transition[0], mdp.reward), 0.5, r"transitions \[A, S, S\] and rewards"),
        (FiniteMDP(mdp.transition * 2, mdp.reward), 0.5, "a row sums to 2"),
        (mdp, 1.0, r"continuation must lie in \[0, 1\), got 1.0"),
        (FiniteMDP(mdp.transition, mdp.reward * torch.nan), 0.5, "rewards must be finite"),
    ):
        with pytest.raises(InputError, match=sentence):
            value_iteration(wrong, gamma)
    for factor, value in ((3.0, "got"), (-1.0, "got -")):
        wrong = FiniteMDP(mdp.transition, mdp.reward * factor)
        with pytest.raises(InputError, match=rf"in \[0, 1\], {value}"):
            expectation_maximization(wrong, 0.5)
    with pytest.raises(InputError, match="temperature must be above 0 and finite, got 0"):
        as_decision_process(*random_chain(0, 3), 0.1, 0.0)
