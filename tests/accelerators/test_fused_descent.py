"""Triton's kernels of L-BFGS's direction and of the ledger against the same in float64."""

import pytest
import torch
from draws import DOUBLE, randn, seeded
from fused import DEVICE, fused_device
from torch import Tensor

from haltwise import InputError
from haltwise._kernels import fused
from haltwise.engines.base import Point
from haltwise.engines.lbfgs import LBFGS
from haltwise.rollout.ledger import MEMORY, Ledger

__all__ = ["fused_device"]
pytestmark = pytest.mark.usefixtures("fused_device")


def descent(num: int, dim: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A gradient, and memories of convex pairs, of which problem n has n modulo `MEMORY` + 1."""
    steps = randn(num, MEMORY, dim, seed=1)
    changes = steps * torch.rand(num, 1, dim, generator=seeded(2), dtype=DOUBLE).add(0.1)
    known = torch.arange(num).unsqueeze(1) % (MEMORY + 1) > torch.arange(MEMORY)
    narrow = (steps * known.unsqueeze(2)).float(), (changes * known.unsqueeze(2)).float()
    steps, changes = (value.double() for value in narrow)
    ones = torch.ones(num, dtype=DOUBLE)
    memory = {
        "scale": ones.clone().uniform_(0.1, 2, generator=seeded(3)),
        "length": ones,
        "reach": ones * torch.inf,
        "steps": steps,
        "changes": changes,
        "inverse": torch.where(known, 1 / (steps * changes).sum(2), 0),
    }
    return randn(num, dim, seed=4), memory


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (9, 2), (100, 10), (15, 300), (8, 1500)])
def test_directions(num: int, dim: int) -> None:
    grad, memory = descent(num, dim)
    params, loss = torch.zeros_like(grad), torch.zeros(num, dtype=DOUBLE)
    right = LBFGS().propose(Point(params, loss, grad), memory)
    point = Point(*(value.to(DEVICE, torch.float32) for value in (params, loss, grad)))
    narrow = {name: value.to(DEVICE, torch.float32) for name, value in memory.items()}
    assert fused.serves_problems(point.grad, narrow["steps"])
    found = LBFGS().propose(point, narrow)
    difference = (found.move.cpu().double() - right.move).norm(dim=1)
    assert (difference <= 1e-5 * right.move.norm(dim=1)).all()


@pytest.mark.parametrize("kept", [{}, {"best": False}, {"recent": False}])
@pytest.mark.parametrize("dim", [1, 3, 300])
def test_a_ledger_is_the_same(kept: dict[str, bool], dim: int) -> None:
    start = randn(20, dim, seed=0, dtype=torch.float32)
    wide, narrow = Ledger(start.double(), **kept), Ledger(start.to(DEVICE), **kept)
    for turn in range(10):
        items = torch.randperm(20, generator=seeded(turn))[: 20 if turn == 0 else 13]
        items[1:4] = 20  # nobody's
        params, grad = (randn(len(items), dim, seed=seed + turn) for seed in (10, 30))
        loss = randn(len(items), seed=50 + turn)
        grad[5, 0], grad[6, -1], loss[7] = torch.inf, torch.nan, torch.nan
        seen = [value.float() for value in (params, loss, grad)]
        wide.note(items, *(value.double() for value in seen))
        narrow.note(items.to(DEVICE), *(value.to(DEVICE) for value in seen))
    for name, rows in wide.rows.items():
        found = narrow.rows[name][:-1].cpu().to(rows.dtype)
        torch.testing.assert_close(found, rows[:-1], rtol=0, atol=0, equal_nan=True)


def test_what_is_no_row_of_a_ledger_is_refused() -> None:
    ledger = Ledger(torch.zeros(4, 3, device=DEVICE))
    ledger.rows["grads"] = ledger.rows["grads"][:, :-1]
    items = torch.arange(4, device=DEVICE)
    values = torch.zeros(4, 3, device=DEVICE)
    with pytest.raises(InputError, match=r"row 'grads'.*\[5, 7, 3\]"):
        ledger.note(items, values, values[:, 0], values)
