"""Signals of quadratics under arbitrary updates."""

import torch
from draws import DOUBLE, randn
from torch import Tensor

from haltwise.processes.signals import SIGNALS, init_signals, measure_signals

__all__ = ["PRICE", "B", "D", "Descent", "T", "measured", "named"]

B, T, D = 5, 9, 4
PRICE = torch.tensor([0.01, 0.05, 0.3, 2.0, 40.0], dtype=DOUBLE)


def measured(losses: Tensor, grads: Tensor, updates: Tensor) -> Tensor:
    """Signals [B, T, S] of losses [B, T], gradients and updates [B, T, D]."""
    memory, found = init_signals(grads[:, 0]), []
    for step in range(losses.shape[1]):
        signals, memory = measure_signals(
            step, losses[:, step], grads[:, step], updates[:, step], memory
        )
        found.append(signals)
    return torch.stack(found, 1)


def named(signals: Tensor) -> dict[str, Tensor]:
    """Signals [..., S] by name, shapes [...]."""
    return dict(zip(SIGNALS, signals.unbind(-1), strict=True))


class Descent:
    """1/2 (theta - m)^T A (theta - m) under updates that are no function of it."""

    def __init__(self, dim: int = D, seed: int = 3) -> None:
        root = randn(B, dim, dim, seed=seed)
        self.hessian = root @ root.mT + 0.1 * torch.eye(dim, dtype=DOUBLE)
        self.errors = [3 * randn(B, dim, seed=seed + 1)]
        self.updates = 0.4 * randn(B, T, dim, seed=seed + 2)
        for update in self.updates.unbind(1):
            self.errors.append(self.errors[-1] + update)
        self.grads = torch.stack([self.grad(error) for error in self.errors[:T]], 1)
        self.losses = torch.stack([self.loss(error) for error in self.errors[:T]], 1)

    def grad(self, error: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.hessian, error)

    def loss(self, error: Tensor) -> Tensor:
        return (error * self.grad(error)).sum(1) / 2

    def signals(self) -> Tensor:
        return measured(self.losses, self.grads, self.updates)
