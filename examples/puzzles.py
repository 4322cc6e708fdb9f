"""Generated puzzles, each with a measure of difficulty that no network sees.

- `sudoku`: 4 x 4, with one solution; difficulty is the backtracks of a solver that tries cells in
  their order. Puzzles held out are in no training batch.
- `sudoku6`: 6 x 6 in boxes of 2 x 3, as above. Some thousand puzzles, of which no clue can be left
  out, are turned about in all ways that keep the rules, and get some clues more.
- `maze`: 5 x 5 cells without circles; the cells on the way from start to goal are to be marked;
  difficulty is the length of the way.
"""

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["TASKS", "Puzzles", "backtracks", "grids", "maze", "solutions", "sudoku", "sudoku6"]

SIDE = 5  # of a maze


class Puzzles(NamedTuple):
    """Tokens [n, L, F], what each should say [n, L], int64, and how hard they are, [n]."""

    inputs: Tensor
    targets: Tensor
    difficulty: Tensor


@cache
def units(side: int) -> list[list[int]]:
    """The cells of rows, columns and boxes; a box of 6 x 6 is 3 cells wide."""
    tall = 2
    wide = side // tall
    tops, lefts = range(0, side, tall), range(0, side, wide)
    return [
        *([side * r + c for c in range(side)] for r in range(side)),
        *([side * r + c for r in range(side)] for c in range(side)),
        *(
            [side * r + c for r in range(top, top + tall) for c in range(left, left + wide)]
            for top in tops
            for left in lefts
        ),
    ]


@cache
def peers(side: int) -> list[list[int]]:
    """The cells that share a unit with each cell."""
    return [
        sorted({other for unit in units(side) if cell in unit for other in unit} - {cell})
        for cell in range(side * side)
    ]


def grids() -> Tensor:
    """All 288 solved 4 x 4 Sudokus, int64 [288, 16]."""
    rows = list(itertools.permutations(range(4)))
    halves = [top + low for top in rows for low in rows if len({*top[:2], *low[:2]}) == 4]
    found = [
        top + low
        for top in halves
        for low in halves
        if all(len({(top + low)[cell] for cell in unit}) == 4 for unit in units(4))
    ]
    return torch.tensor(found)


def backtracks(clues: list[int]) -> int:
    """How often a solver takes back a digit, trying open cells (-1) in order."""
    count, side = 0, math.isqrt(len(clues))
    near = peers(side)

    def solve(cell: int) -> bool:
        nonlocal count
        while cell < len(clues) and clues[cell] >= 0:
            cell += 1
        if cell == len(clues):
            return True
        for digit in sorted(set(range(side)) - {clues[other] for other in near[cell]}):
            clues[cell] = digit
            if solve(cell + 1):
                return True
            clues[cell] = -1
            count += 1
        return False

    clues = list(clues)
    solve(0)
    return count


def solutions(clues: list[int], most: int, order: list[int]) -> list[list[int]]:
    """The first solutions of a puzzle, digits tried in an order where they are fewest."""
    near = peers(len(order))
    left = [set(order) for _ in clues]
    found: list[list[int]] = []

    def narrow(cell: int, digit: int) -> list[int]:
        cut = [other for other in near[cell] if digit in left[other]]
        for other in cut:
            left[other].discard(digit)
        return cut

    def solve(grid: list[int], open_cells: set[int]) -> None:
        if not open_cells:
            found.append(list(grid))
            return
        cell = min(open_cells, key=lambda each: len(left[each]))
        for digit in [each for each in order if each in left[cell]]:
            cut = narrow(cell, digit)
            grid[cell] = digit
            solve(grid, open_cells - {cell})
            for other in cut:
                left[other].add(digit)
            if len(found) >= most:
                return

    for cell, digit in enumerate(clues):
        if digit >= 0:
            narrow(cell, digit)
    solve(list(clues), {cell for cell, digit in enumerate(clues) if digit < 0})
    return found


def sudoku(num: int, generator: torch.Generator, *, held_out: bool) -> Puzzles:
    """Puzzles of 4 to 10 clues; those whose clues sum to 0 modulo 8 in a hash are held out."""
    solved, inputs, targets = grids(), [], []
    while sum(map(len, targets)) < num:
        count = torch.randint(4, 11, (4 * num, 1), generator=generator)
        shown = torch.rand(4 * num, 16, generator=generator).argsort(1).argsort(1) < count
        grid = solved[torch.randint(len(solved), (4 * num,), generator=generator)]
        clash = one_hot(grid, 4).flatten(1).float() * shown.repeat_interleave(4, 1)
        same = clash @ one_hot(solved, 4).flatten(1).float().T == count  # grids with these clues
        clues = torch.where(shown, grid, -1)
        rows = (same.sum(1) == 1) & (_in_test(clues) == held_out)
        inputs.append(one_hot(clues[rows] + 1, 5).float())
        targets.append(grid[rows])
    return _graded(torch.cat(inputs)[:num], torch.cat(targets)[:num], held_out)


def sudoku6(num: int, generator: torch.Generator, *, held_out: bool) -> Puzzles:
    """Puzzles of up to 24 clues, at least 12 or as many as are needed; held out as above."""
    least = [_least(generator) for _ in range(min(2000, num // 20 + 1))]
    bases, solved = (torch.tensor(each) for each in zip(*least, strict=True))
    inputs, targets = [], []
    while sum(map(len, targets)) < num:
        chosen = torch.randint(len(bases), (2 * num,), generator=generator)
        needed, grid = bases[chosen].float(), solved[chosen]
        # Rows within bands and columns within stacks change places, these do, and digits do.
        rows, columns = _lines(2 * num, 3, 2, generator), _lines(2 * num, 2, 3, generator)
        moved = (6 * rows.unsqueeze(2) + columns.unsqueeze(1)).flatten(1)
        digits = torch.rand(2 * num, 6, generator=generator).argsort(1)
        grid = digits.gather(1, grid.gather(1, moved))
        score = torch.rand(2 * num, 36, generator=generator) - needed.gather(1, moved)
        count = torch.randint(12, 25, (2 * num, 1), generator=generator)
        shown = (score.argsort(1).argsort(1) < count) | (score < 0)
        clues = torch.where(shown, grid, -1)
        kept = _in_test(clues) == held_out
        inputs.append(one_hot(clues[kept] + 1, 7).float())
        targets.append(grid[kept])
    digits = torch.cat(inputs)[:num]
    graded = _graded(digits, torch.cat(targets)[:num], held_out)
    places = torch.zeros(36, 18)  # which row, column and box
    for number, unit in enumerate(units(6)):
        places[unit, number] = 1
    return graded._replace(inputs=torch.cat((digits, places.expand(num, -1, -1)), 2))


def _least(generator: torch.Generator) -> tuple[list[bool], list[int]]:
    """Cells of a solved 6 x 6 Sudoku that suffice to solve it, none of them needless; the grid."""
    order, cells = (torch.randperm(n, generator=generator).tolist() for n in (6, 36))
    corner = torch.randperm(6, generator=generator).tolist()
    (grid,) = solutions(corner + [-1] * 30, 1, order)
    clues = list(grid)
    for cell in cells:
        clues[cell] = -1
        if len(solutions(clues, 2, order)) > 1:
            clues[cell] = grid[cell]
    return [clue >= 0 for clue in clues], grid


def _lines(num: int, parts: int, size: int, generator: torch.Generator) -> Tensor:
    """Orders of lines in which parts change places, and lines within parts, int64 [num, 6]."""
    part = torch.rand(num, parts, generator=generator).argsort(1)
    within = torch.rand(num, parts, size, generator=generator).argsort(2)
    return (size * part.unsqueeze(2) + within).flatten(1)


def _in_test(clues: Tensor) -> Tensor:
    """An eighth of all puzzles, those whose clues sum to 0 modulo 8 in a hash, bool [n]."""
    seeded = torch.Generator().manual_seed(0)
    weights = torch.randint(2**20, (clues.shape[1],), generator=seeded)
    return ((clues + 1) * weights).sum(1) % 8 == 0


def _graded(inputs: Tensor, targets: Tensor, held_out: bool) -> Puzzles:
    hard = torch.zeros(len(inputs))
    if held_out:
        hard = torch.tensor([backtracks(row) for row in (inputs.argmax(-1) - 1).tolist()]).float()
    return Puzzles(inputs, targets, hard)


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


TASKS: dict[str, Callable[..., Puzzles]] = {"sudoku": sudoku, "sudoku6": sudoku6, "maze": maze}
