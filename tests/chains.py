"""Small Markov chains and mazes whose answers tests find by brute force."""

import torch
from draws import DOUBLE, seeded
from torch import Tensor

from haltwise.planning import FiniteMDP

__all__ = ["maze", "random_chain"]

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def maze(seed: int, size: int = 8, slip: float = 0.2) -> FiniteMDP:
    """A random maze: a goal that pays 1 at every step, walls in the way, moves that may slip.

    A move goes astray in a random direction with probability `slip`, and stays where a wall is.
    """
    generator = seeded(seed)
    wall = torch.rand(size, size, generator=generator) < 0.25
    cells = [(r, c) for r in range(size) for c in range(size) if not wall[r, c]]
    index = {cell: place for place, cell in enumerate(cells)}
    goal = int(torch.randint(len(cells), (), generator=generator))
    sure = torch.zeros(len(MOVES), len(cells), len(cells), dtype=DOUBLE)
    for action, (down, right) in enumerate(MOVES):
        for place, (row, column) in enumerate(cells):
            to = index.get((row + down, column + right), place)
            sure[action, place, place if place == goal else to] = 1
    reward = torch.zeros(len(MOVES), len(cells), dtype=DOUBLE)
    reward[:, goal] = 1
    return FiniteMDP((1 - slip) * sure + slip * sure.mean(0), reward)


def random_chain(seed: int, num_states: int) -> tuple[Tensor, Tensor]:
    """Transitions [S, S] and losses [S] of a chain without order."""
    generator = seeded(seed)
    transition = torch.rand(num_states, num_states, generator=generator, dtype=DOUBLE) ** 4
    losses = torch.rand(num_states, generator=generator, dtype=DOUBLE)
    return transition / transition.sum(1, keepdim=True), losses
