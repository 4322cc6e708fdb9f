"""Loops that a monitor watches: torch's Adam on problems, and decays whose end is known."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from haltwise import HaltingMonitor
from haltwise.tasks import TaskBatch

__all__ = ["RATE", "Decay", "drive", "record_runs", "steps_of_adam"]

RATE = 0.15


def steps_of_adam(
    batch: TaskBatch, problem: int, rate: float = RATE, beta2: float = 0.999
) -> Iterator[tuple[float, list[Tensor]]]:
    """A plain loop of torch's Adam on one problem, its parameters in two tensors; NaN first."""
    single = batch.select(torch.tensor([problem]))
    params = [value.clone().requires_grad_() for value in single.start.tensor_split(2, 1)]
    optimizer = torch.optim.Adam(params, lr=rate, betas=(0.9, beta2))
    yield math.nan, params
    for step in itertools.count():
        loss, grad = single.observe(torch.cat(params, 1).detach(), step)
        for param, part in zip(params, grad.tensor_split(2, 1), strict=True):
            param.grad = part.clone()
        optimizer.step()
        yield loss.item(), params


class Decay:
    """Losses a s^t + b with a, s and b of the run, as a model of one parameter goes through them.

    What a stop at a price is worth follows from a and s, which nobody tells the monitor.
    """

    def __init__(self, seed: int) -> None:
        draw = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        self.height, self.share, self.floor = 1 + 3 * draw[0], 0.5 + 0.45 * draw[1], draw[2]
        self.param = nn.Parameter(torch.ones(1))

    def loss(self, step: int) -> float:
        return float(self.floor + self.height * self.share**step)

    def step(self, step: int) -> float:
        """Move as gradient descent on a theta^2 / 2 would; the loss before."""
        self.param.grad = 2 * self.height * self.param.detach()
        self.param.data *= self.share**0.5
        return self.loss(step)


def drive(monitor: HaltingMonitor, seed: int, num: int = 32, *, scored: bool = False) -> int:
    """Run the decay under the monitor; how many rounds it took."""
    run = Decay(seed)
    monitor.start([run.param])
    for step in range(num):
        loss = run.step(step)
        monitor.update(loss, [run.param], score=run.loss(step + 1) if scored else None)
        if monitor.should_stop:
            break
    monitor.close()
    return monitor.steps


def record_runs(directory: Path, seeds: range, *, scored: bool = False) -> Path:
    monitor = HaltingMonitor.recording(directory)
    for seed in seeds:
        drive(monitor, seed, scored=scored)
    return directory
