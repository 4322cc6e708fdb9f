"""Trainings of a line by SGD, as a plain loop and as data for trainers of other packages."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.testing import assert_close

from haltwise import HaltingMonitor
from haltwise.recordings.runs import RecordedRuns

__all__ = ["assert_records_as_plain_loop", "line_data", "new_line", "plain_loop"]


def line_data(seed: int) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 3, generator=generator)
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


def new_line(seed: int) -> nn.Linear:
    model = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        nn.init.normal_(param, generator=generator)
    return model


def plain_loop(monitor: HaltingMonitor, seed: int, num: int) -> nn.Module:
    """What the trainers are told to do: a step of SGD on all data a round."""
    model, (x, y) = new_line(seed), line_data(seed).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    monitor.start(model)
    for _ in range(num):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        monitor.update(loss, model)
        if monitor.should_stop:
            break
    monitor.close()
    return model


def assert_records_as_plain_loop(
    fit: Callable[[HaltingMonitor, int, int], object], folder: Path
) -> None:
    """A trainer that fits with a monitor, a seed and rounds records the same, but for rounding."""
    fit(HaltingMonitor.recording(folder / "a"), 500, 8)
    plain_loop(HaltingMonitor.recording(folder / "b"), 500, 8)
    one, other = (RecordedRuns.load(folder / name).trajectory for name in ("a", "b"))
    assert_close(one.known("signals"), other.known("signals"), rtol=1e-3, atol=1e-3)
    assert_close(one.excess, other.excess, rtol=1e-4, atol=1e-4)
