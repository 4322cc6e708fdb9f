"""Generated puzzles, each with a measure of difficulty that no network sees.

- `sudoku`: 4 x 4, with one solution; difficulty is the backtracks of a solver that tries cells in
  their order. Puzzles held out are in no training batch.
- `maze`: 5 x 5 cells without circles; the cells on the way from start to goal are to be marked;
  difficulty is the length of the way.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["TASKS", "Puzzles", "backtracks", "grids", "maze", "sudoku"]

SIDE = 5  # of a maze


class Puzzles(NamedTuple):
    """Tokens [n, L, F], what each should say [n, L], int64, and how hard they are, [n]."""

    inputs: Tensor
    targets: Tensor
    difficulty: Tensor


UNITS = [
    *([4 * r + c for c in range(4)] for r in range(4)),
    *([4 * r + c for r in range(4)] for c in range(4)),
    *([4 * r + c for r in (a, a + 1) for c in (b, b + 1)] for a in (0, 2) for b in (0, 2)),
]


def grids() -> Tensor:
    """All 288 solved 4 x 4 Sudokus, int64 [288, 16]."""
    rows = list(itertools.permutations(range(4)))
    halves = [top + low for top in rows for low in rows if len({*top[:2], *low[:2]}) == 4]
    found = [
        top + low
        for top in halves
        for low in halves
        if all(len({(top + low)[cell] for cell in unit}) == 4 for unit in UNITS)
    ]
    return torch.tensor(found)


def backtracks(clues: list[int]) -> int:
    """How often a solver takes back a digit, trying open cells (-1) in order."""
    count = 0

    def solve(cell: int) -> bool:
        nonlocal count
        while cell < 16 and clues[cell] >= 0:
            cell += 1
        if cell == 16:
            return True
        seen = {clues[other] for unit in UNITS if cell in unit for other in unit}
        for digit in sorted(set(range(4)) - seen):
            clues[cell] = digit
            if solve(cell + 1):
                return True
            clues[cell] = -1
            count += 1
        return False

    clues = list(clues)
    solve(0)
    return count


def sudoku(num: int, generator: torch.Generator, *, held_out: bool) -> Puzzles:
    """Puzzles of 4 to 10 clues; those whose clues sum to 0 modulo 8 in a hash are held out."""
    solved, inputs, targets = grids(), [], []
    weights = torch.randint(2**20, (16,), generator=torch.Generator().manual_seed(0))
    while sum(map(len, targets)) < num:
        count = torch.randint(4, 11, (4 * num, 1), generator=generator)
        shown = torch.rand(4 * num, 16, generator=generator).argsort(1).argsort(1) < count
        grid = solved[torch.randint(len(solved), (4 * num,), generator=generator)]
        clash = one_hot(grid, 4).flatten(1).float() * shown.repeat_interleave(4, 1)
        same = clash @ one_hot(solved, 4).flatten(1).float().T == count  # grids with these clues
        clues = torch.where(shown, grid, -1)
        in_test = ((clues + 1) * weights).sum(1) % 8 == 0
        rows = (same.sum(1) == 1) & (in_test == held_out)
        inputs.append(one_hot(clues[rows] + 1, 5).float())
        targets.append(grid[rows])
    drawn, answers = torch.cat(inputs)[:num], torch.cat(targets)[:num]
    hard = torch.zeros(num)
    if held_out:
        hard = torch.tensor([backtracks(row) for row in (drawn.argmax(-1) - 1).tolist()]).float()
    return Puzzles(drawn, answers, hard)


def maze(num: int, generator: torch.Generator, *, held_out: bool) -> Puzzles:
    """Random spanning trees of a grid of cells, a start and a goal; tokens show open walls."""
    del held_out  # there are 5e14 of them
    cells = SIDE * SIDE
    edges = [(c, c + 1) for c in range(cells) if (c + 1) % SIDE] + [
        (c, c + SIDE) for c in range(cells - SIDE)
    ]
    inputs, targets = torch.zeros(num, cells, 6), torch.zeros(num, cells, dtype=torch.int64)
    length = torch.zeros(num)
    order = torch.rand(num, len(edges), generator=generator).argsort(1).tolist()
    ends = torch.rand(num, cells, generator=generator).argsort(1)[:, :2].tolist()
    for item in range(num):
        part, near = list(range(cells)), [[] for _ in range(cells)]
        for edge in order[item]:
            one, other = edges[edge]
            if part[one] != part[other]:
                old, new = part[one], part[other]
                part = [new if each == old else each for each in part]
                near[one].append(other)
                near[other].append(one)
                right = other == one + 1
                inputs[item, one, 0 if right else 1] = inputs[item, other, 2 if right else 3] = 1
        start, goal = ends[item]
        inputs[item, start, 4] = inputs[item, goal, 5] = 1
        before, frontier = {start: start}, [start]
        for cell in frontier:
            fresh = [other for other in near[cell] if other not in before]
            before |= dict.fromkeys(fresh, cell)
            frontier += fresh
        while goal != start:
            targets[item, goal] = 1
            goal = before[goal]
            length[item] += 1
        targets[item, start] = 1
    return Puzzles(inputs, targets, length)


TASKS: dict[str, Callable[..., Puzzles]] = {"sudoku": sudoku, "maze": maze}
