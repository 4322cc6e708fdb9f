"""Streams of random subsets: known bits, the right law, nothing shared between steps or seeds."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from haltwise._core.random import random_subsets, split_mix

MASK = 2**64 - 1


def reference(seed: int) -> Iterator[int]:
    """SplitMix64 as its authors print it, on integers without bounds."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        bits = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
        yield bits ^ (bits >> 31)


def unsigned(bits: Tensor) -> list[int]:
    return [value & MASK for value in bits.tolist()]


def test_bits_are_those_published_for_split_mix() -> None:
    bits = split_mix(torch.tensor(1234567), torch.arange(5))
    assert unsigned(bits) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 20170524])
def test_bits_equal_the_unbounded_twin(seed: int) -> None:
    expected = list(itertools.islice(reference(seed & MASK), 300))
    assert unsigned(split_mix(torch.tensor(seed), torch.arange(300))) == expected


def test_subsets_are_ranked_by_the_unbounded_twin() -> None:
    chosen = random_subsets(torch.tensor([7, 8]), 3, 20, 6)
    for row, seed in zip(chosen.tolist(), (7, 8), strict=True):
        now = next(itertools.islice(reference(seed), 3, None))
        keys = list(itertools.islice(reference(now), 20))
        signed = [key - 2**64 if key >= 2**63 else key for key in keys]
        assert row == sorted(range(20), key=signed.__getitem__)[:6]


def test_a_subset_holds_no_item_twice_and_the_whole_is_a_permutation() -> None:
    seed = torch.arange(500)
    assert all(len(set(row)) == 7 for row in random_subsets(seed, 0, 9, 7).tolist())
    whole = random_subsets(seed, 0, 9, 9)
    assert torch.equal(whole.sort(1).values, torch.arange(9).expand(500, -1))


def test_a_problem_draws_the_same_whoever_stands_beside_it() -> None:
    seed = torch.randint(2**63 - 1, (9,), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([random_subsets(one[None], 10**7, 50, 8) for one in seed])
    assert torch.equal(random_subsets(seed, 10**7, 50, 8), alone)


ORDERED = {pair: index for index, pair in enumerate(itertools.permutations(range(5), 2))}


def codes(seeds: Tensor, steps: range) -> np.ndarray:
    """Which of the 20 ordered pairs of 5 items each seed draws at each step, [seeds, steps]."""
    drawn = np.array([random_subsets(seeds, step, 5, 2).numpy() for step in steps])
    table = np.full((5, 5), -1)
    for (first, second), index in ORDERED.items():
        table[first, second] = index
    pairs: np.ndarray = table[drawn[..., 0], drawn[..., 1]].T
    return pairs


SEEDS = {
    "random": torch.randint(2**63 - 1, (200,), generator=torch.Generator().manual_seed(2)),
    "consecutive": torch.arange(200),  # the hardest for a poor hash
}


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
def test_ordered_subsets_are_uniform(seeds: Tensor) -> None:
    counts = np.bincount(codes(seeds, range(200)).ravel(), minlength=20)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("lag", [1, 2, 7])
def test_steps_and_problems_are_independent(seeds: Tensor, lag: int) -> None:
    drawn = codes(seeds, range(200))
    neighbours = {"steps": (drawn[:, :-lag], drawn[:, lag:]), "seeds": (drawn[:-lag], drawn[lag:])}
    for first, second in neighbours.values():
        counts = np.bincount((20 * first + second).ravel(), minlength=400)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
