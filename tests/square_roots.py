"""Processes that are no optimization."""

from typing import final

import torch
from torch import Tensor

from haltwise.processes import Process, ProcessStep

__all__ = ["Roots"]


@final
class Roots(Process):
    """Newton's iteration for square roots; each step's loss is the error of the square."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    @property
    def num_items(self) -> int:
        return len(self.numbers)

    def init(self) -> dict[str, Tensor]:
        return {"root": torch.ones_like(self.numbers)}

    def step(self, step: int, state: dict[str, Tensor]) -> ProcessStep:
        root = state["root"]
        loss = (root * root - self.numbers).abs()
        return ProcessStep(self.observe(step, loss), {"root": (root + self.numbers / root) / 2})

    def result(self, state: dict[str, Tensor]) -> Tensor:
        return state["root"].unsqueeze(1)

    def select(self, index: Tensor) -> "Roots":
        return Roots(self.numbers[index])
