"""Trajectories and stops for tests of the judge: noisy, falling curves of sixty items."""

from typing import Any

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise.evaluation import StoppingRecord, stopping_report
from haltwise.stop_rules import CostUnit

DOUBLE = torch.float64
N, T, PRICE = 60, 8, 0.1


def make_losses(num: int = N, steps: int = T, *, seed: int = 0) -> Tensor:
    """Curves whose best stops are spread over the horizon, shape [num, steps+1]."""
    generator = stream(seed, "losses")
    rate = torch.rand(num, 1, generator=generator, dtype=DOUBLE) + 0.1
    fall = 4 * torch.exp(-rate * torch.arange(steps + 1))
    return fall + 0.1 * torch.randn(num, steps + 1, generator=generator, dtype=DOUBLE)


LOSSES = make_losses()
STEPS = torch.arange(T + 1, dtype=DOUBLE)
TABLE = LOSSES + PRICE * STEPS
ORACLE = TABLE.argmin(1)
STOPS = (ORACLE + torch.randint(-1, 2, (N,), generator=stream(1))).clamp(0, T)
HAZARDS = torch.rand(N, T, generator=stream(2), dtype=DOUBLE)
GROUPS = torch.arange(N) % 6 + 10


def judged(losses: Tensor = LOSSES, stops: Tensor = STOPS, **settings: Any) -> StoppingRecord:
    """The stopping report without baselines, unless they are asked for."""
    settings = {"price": PRICE, "baselines": False} | settings
    return stopping_report(losses, stops, **settings)


def ended(decided: int, unit: CostUnit) -> int:
    """The step at which a stop decided at a step ends."""
    return decided if unit is CostUnit.UPDATES else min(decided + 1, T)
