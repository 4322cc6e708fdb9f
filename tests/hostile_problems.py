"""Batches of which some problems have losses or gradients that no optimizer can bear."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise.tasks import family
from haltwise.tasks.least_squares import LeastSquaresBatch

__all__ = [
    "BAD",
    "EVILS",
    "GOOD",
    "HORIZON",
    "NUM_PROBLEMS",
    "PRICE",
    "TAME",
    "good_problems",
    "hostile_problems",
]

NUM_PROBLEMS, HORIZON, PRICE = 24, 12, 0.05
BAD = torch.tensor([1, 7, 8, 23])
GOOD = torch.tensor([number for number in range(NUM_PROBLEMS) if number not in BAD])


def good_problems() -> LeastSquaresBatch:
    batch = family("regression-2d").sample(NUM_PROBLEMS, stream(0, "hostile"))
    assert isinstance(batch, LeastSquaresBatch)
    return batch


def _spoil(name: str, value: float) -> LeastSquaresBatch:
    batch = good_problems()
    spoiled: Tensor = getattr(batch, name).clone()
    spoiled[BAD] = value
    return replace(batch, **{name: spoiled})


EVILS: dict[str, Callable[[], LeastSquaresBatch]] = {
    "NaN": lambda: _spoil("target", math.nan),
    "infinite": lambda: _spoil("target", math.inf),
    "loss overflows": lambda: _spoil("target", 1e25),
    "gradients of 1e30": lambda: _spoil("scale", 1e28),
    "gradients of 1e-30": lambda: _spoil("scale", 1e-30),
    "no gradient at all": lambda: _spoil("scale", 0.0),
    "singular designs": lambda: _spoil("factor", 0.0),
    "huge designs": lambda: _spoil("factor", 1e18),
    "far starts": lambda: _spoil("start", 1e19),
}
TAME = ("gradients of 1e-30", "no gradient at all", "singular designs")


def hostile_problems(evil: str) -> LeastSquaresBatch:
    """The same problems, those of `BAD` spoiled."""
    return EVILS[evil]()
