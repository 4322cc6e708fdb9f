"""Fits of logistic growths, some of whose steps lead to plateaus."""

import torch
from draws import DOUBLE, seeded
from torch import Tensor

from haltwise import FunctionBatch


def growths(height: float) -> FunctionBatch:
    """Logistic growths, far steeper than where they begin to be fitted."""
    draw = seeded(10)
    time = torch.linspace(0, 5, 40, dtype=DOUBLE).expand(40, 40)
    truth = torch.rand(40, 4, generator=draw, dtype=DOUBLE) * torch.tensor([9.0, 3.0, 0.0, 2.0])
    truth = height * (truth + torch.tensor([1.0, 0.0, 0.0, -1.0]))
    truth[:, 1:3] = torch.stack((truth[:, 1] / height + 1, torch.full((40,), 2.5)), 1)

    def growth(params: Tensor, time: Tensor) -> Tensor:
        size, rate, half, rest = params.T.unsqueeze(-1)
        grown: Tensor = size * (rate * (time - half)).sigmoid() + rest
        return grown

    noise = 0.05 * torch.randn(40, 40, generator=draw, dtype=DOUBLE)
    start = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=DOUBLE).repeat(40, 1)
    return FunctionBatch(
        start,
        residuals=lambda params, time, y: growth(params, time) - y,
        data={"time": time, "y": growth(truth, time) + noise},
    )
