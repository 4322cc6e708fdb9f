"""When to stop a plain PyTorch loop, learned from recorded runs of it."""

import itertools
import tempfile
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from haltwise import HaltingMonitor
from haltwise._random import stream

NUM_ROUNDS, STEPS_A_ROUND, BATCH = 60, 5, 32


def load_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def fit(digits: tuple[Tensor, Tensor], seed: int, monitor: HaltingMonitor, score: bool) -> float:
    generator = stream(seed, "run")
    images, labels = digits
    order = torch.randperm(len(images), generator=generator)
    size = int(30 * 20 ** torch.rand((), generator=generator))
    rate = 10 ** (-3.3 + 2 * torch.rand((), generator=generator).item())
    train, val, test = order[:size], order[600:750], order[750:]
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for p in model.parameters():
        nn.init.uniform_(p, -p.shape[-1]**-0.5, p.shape[-1]**-0.5, generator=generator)
    opt = torch.optim.Adam(model.parameters(), lr=rate)
    monitor.start(model)
    for r in range(NUM_ROUNDS + 1):
        for _ in range(STEPS_A_ROUND):
            batch = train[torch.randint(size, (BATCH,), generator=generator)]
            opt.zero_grad()
            loss = cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            opt.step()
        with torch.no_grad():
            v = cross_entropy(model(images[val]), labels[val])
            t = cross_entropy(model(images[test]), labels[test])
        monitor.update(v, model, score=t)
        if monitor.should_stop:
            break
    monitor.close()
    return t.item()
