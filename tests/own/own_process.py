"""A process of one's own: Newton's iteration for square roots."""

from dataclasses import dataclass

import torch
from torch import Tensor

from haltwise.processes import Process, ProcessFamily, ProcessStep


class Roots(Process):
    """x_{t+1} = (x_t + a / x_t) / 2, each step's loss |x^2 - a|."""

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
        new = (root + self.numbers / root) / 2
        return ProcessStep(self.observe(step, loss), {"root": new})

    def result(self, state: dict[str, Tensor]) -> Tensor:
        return state["root"].unsqueeze(1)

    def select(self, index: Tensor) -> "Roots":
        return Roots(self.numbers[index])


@dataclass(frozen=True)
class SquareRoots(ProcessFamily):
    """Numbers log-uniform from 1 to 10^decades."""

    decades: float = 6.0
    """Decades over which the numbers are spread."""

    def sample(
        self,
        num_items: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Process:
        exponent = torch.rand(num_items, generator=generator, dtype=torch.float64)
        return Roots((10 ** (self.decades * exponent)).to(device, dtype))
