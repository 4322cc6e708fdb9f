"""Stopping known chains: every rule tried, every path listed, and runs drawn at random."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from chains import random_chain
from draws import DOUBLE, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.planning import optimal_stopping, stopping_costs
from haltwise.processes.markov_chain import MarkovChainFamily
from haltwise.rollout import record_process

PRICE = 0.07


def paths(transition: Tensor, steps: int) -> list[tuple[tuple[int, ...], float]]:
    """Every path from state 0, with its probability."""
    found = []
    for later in itertools.product(range(len(transition)), repeat=steps):
        path = (0, *later)
        chance = 1.0
        for now, then in itertools.pairwise(path):
            chance *= transition[now, then].item()
        found.append((path, chance))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_rule_of_state_and_step_is_better(seed: int) -> None:
    """All 2^(2 * 3) rules of three states, from step 1 on, over all paths of 3 steps."""
    transition, losses = random_chain(seed, 3)
    every = paths(transition, 3)

    def cost(rule: dict[tuple[int, int], bool]) -> float:
        total = 0.0
        for path, chance in every:
            end = next((t for t in range(3) if rule[t, path[t]]), 3)
            total += chance * (losses[path[end]].item() + PRICE * end)
        return total

    places = [(1, s) for s in range(3)] + [(2, s) for s in range(3)]
    tried = []
    for first, *later in itertools.product((False, True), repeat=7):
        rule = dict(zip(places, later, strict=True)) | {(0, s): first for s in range(3)}
        tried.append(cost(rule))
    found = optimal_stopping(transition, losses, PRICE, 3)
    assert found.value[0].item() == pytest.approx(min(tried), rel=1e-12)
    own = {(t, s): bool(found.stop[t, s]) for t in range(3) for s in range(3)}
    assert cost(own) == pytest.approx(min(tried), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_budget_and_clairvoyant_are_those_of_all_paths(seed: int) -> None:
    transition, losses = random_chain(seed, 3)
    every = paths(transition, 5)
    costs = [[losses[s].item() + PRICE * t for t, s in enumerate(path)] for path, _ in every]
    chances = [chance for _, chance in every]
    start = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE)
    found = stopping_costs(transition, losses, PRICE, start, 5)
    means = [sum(c * row[t] for c, row in zip(chances, costs, strict=True)) for t in range(6)]
    assert found.fixed == pytest.approx(min(means), rel=1e-12)
    assert found.fixed_budget == means.index(min(means))
    least = sum(c * min(row) for c, row in zip(chances, costs, strict=True))
    assert found.clairvoyant == pytest.approx(least, rel=1e-12)
    assert found.clairvoyant <= found.causal <= found.fixed
    gain = (found.fixed - found.causal) / (found.fixed - found.clairvoyant)
    assert found.captured_gain == pytest.approx(gain)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_horizon_it_is_the_limit_of_long_ones(seed: int) -> None:
    transition, losses = random_chain(seed, 7)
    found, long = (optimal_stopping(transition, losses, 0.01, most) for most in (None, 3000))
    assert_close(found.value, long.value, rtol=1e-12, atol=0)
    assert torch.equal(found.stop[0], long.stop[0])
    assert found.advantage.shape == (1, 7)


def test_the_known_chain() -> None:
    """The figures of an independent program: value iteration and 20,000 simulated runs."""
    family = MarkovChainFamily()
    start = torch.zeros(40, dtype=DOUBLE)
    start[0] = 1
    found = stopping_costs(family.transition(), family.losses(), 0.02, start)
    assert found.causal == pytest.approx(0.50053, abs=5e-6)
    assert found.fixed == pytest.approx(0.51161, abs=5e-6)
    assert found.fixed_budget == 13
    assert found.clairvoyant == pytest.approx(0.47452, abs=3e-4)
    assert found.captured_gain == pytest.approx(0.299, abs=0.005)
    stop = optimal_stopping(family.transition(), family.losses(), 0.02).stop[0]
    assert int(stop.byte().argmax()) == 8


@pytest.mark.parametrize("relapse", [0.1, 0.6])
def test_recorded_chains_have_the_law_of_the_family(relapse: float) -> None:
    family = replace(MarkovChainFamily(), num_states=5, relapse=relapse)
    recorded = record_process(family.sample(4000, seeded(), dtype=DOUBLE), 30)
    losses = family.losses()
    states = (recorded.loss.unsqueeze(-1) - losses).abs().argmin(-1)
    assert torch.equal(losses[states], recorded.loss)
    assert (states[:, 0] == 0).all()
    counts = torch.zeros(5, 5, dtype=DOUBLE)
    for now, then in zip(
        states[:, :-1].flatten().tolist(), states[:, 1:].flatten().tolist(), strict=True
    ):
        counts[now, then] += 1
    shares = counts / counts.sum(1, keepdim=True)
    errors = (family.transition() * (1 - family.transition()) / counts.sum(1, keepdim=True)).sqrt()
    assert ((shares - family.transition()).abs() <= 4.5 * errors + 1e-12).all()


def test_the_best_stops_cost_what_the_law_says() -> None:
    family = MarkovChainFamily()
    recorded = record_process(family.sample(8000, seeded()), 60)
    for price in (0.01, 0.04):
        stops = family.best_stops(recorded, price)
        paid = recorded.excess.double().gather(1, stops.unsqueeze(1)).squeeze(1) + price * stops
        expected = optimal_stopping(family.transition(), family.losses(), price, 60).value[0]
        assert abs(paid.mean() - expected) < 4 * paid.std() / len(paid) ** 0.5
        for shift in (-1, 1):  # a step sooner or later is worse
            other = (stops + shift).clamp(0, 60)
            cost = recorded.excess.double().gather(1, other.unsqueeze(1)).squeeze(1) + price * other
            assert cost.mean() > paid.mean()


def test_a_run_stops_at_the_first_state_to_stop_in() -> None:
    transition = torch.tensor([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]], dtype=DOUBLE)
    losses = torch.tensor([2.0, 1.0, 0.9], dtype=DOUBLE)
    found = optimal_stopping(transition, losses, 0.2)
    assert found.stop.tolist() == [[False, True, True]]
    states = torch.tensor([[0, 0, 1, 2], [1, 2, 2, 2], [0, 0, 0, 0], [0, 0, 0, 1]])
    assert found.stops(states).tolist() == [2, 0, 3, 3]
    soon = optimal_stopping(transition, losses, 0.2, 3)
    assert soon.stops(states).tolist() == [2, 0, 3, 3]


def test_what_is_impossible_is_refused() -> None:
    transition, losses = random_chain(0, 3)
    for wrong, price, most, sentence in (
        (transition[:2], 0.1, None, r"losses \[S\] and transitions \[S, S\]"),
        (transition / 2, 0.1, None, "a row sums to 0.5"),
        (transition, 0.0, None, "price must be a finite number above 0"),
        (transition, 0.1, 0, "max_steps must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            optimal_stopping(wrong, losses, price, most)
    with pytest.raises(InputError, match="losses must be finite"):
        optimal_stopping(transition, losses / 0, 0.1)
    for setting, sentence in (
        ({"num_states": 1}, "num_states must be at least 2, got 1"),
        ({"num_states": 2.5}, "num_states must be a whole number, got 2.5"),
        ({"relapse": 1.5}, r"relapse is a probability, in \[0, 1\], got 1.5"),
        ({"loss_decay": 0.0}, "loss_decay must be above 0, got 0.0"),
    ):
        with pytest.raises(InputError, match=sentence):
            replace(MarkovChainFamily(), **setting)


def test_states_that_are_none_and_starts_that_are_no_law_are_refused() -> None:
    transition = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    losses = torch.tensor([1.0, 0.0], dtype=torch.float64)
    best = optimal_stopping(transition, losses, 0.2, 2)
    for states, sentence in (
        (torch.zeros(2, 3), r"int64 tensor of shape \[n, T\+1\], got torch.float32"),
        (torch.zeros(2, 0).long(), r"of shape \[n, T\+1\], got torch.int64 in shape \[2, 0\]"),
        (torch.full((2, 3), -1), "numbers of the 2 states, from 0 on, got -1 to -1"),
        (torch.zeros(2, 5, dtype=torch.int64), "beyond the horizon of 2 steps"),
    ):
        with pytest.raises(InputError, match=sentence):
            best.stops(states)
    start = torch.tensor([2.0, 0.0], dtype=torch.float64)
    with pytest.raises(InputError, match=r"start must be probabilities that sum to 1; .* sum to 2"):
        stopping_costs(transition, losses, 0.2, start)
    fate = stopping_costs(torch.eye(2, dtype=torch.float64), losses, 0.2, start / 2)
    assert fate.fixed == fate.clairvoyant
    assert math.isnan(fate.captured_gain)


def test_a_horizon_of_one_step_is_one() -> None:
    transition = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    losses = torch.tensor([1.0, 0.0], dtype=torch.float64)
    best = optimal_stopping(transition, losses, 0.2, 1)
    assert best.stops(torch.tensor([[0, 0], [1, 1]])).tolist() == [1, 0]
    with pytest.raises(InputError, match="beyond the horizon of 1 steps"):
        best.stops(torch.zeros(1, 5, dtype=torch.int64))
    forever = optimal_stopping(transition, losses, 0.2)
    assert forever.stops(torch.zeros(1, 5, dtype=torch.int64)).tolist() == [4]


def test_where_going_on_gains_nothing_it_stops() -> None:
    """A step at a price of 1/2 that gains 1/2: both are binary fractions, so the tie is exact."""
    transition = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    losses = torch.tensor([1.0, 0.5], dtype=torch.float64)
    for horizon in (None, 3):
        assert optimal_stopping(transition, losses, 0.5, horizon).stop.all()
