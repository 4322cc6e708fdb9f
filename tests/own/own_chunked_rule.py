"""An update rule of one's own that counts: momentum which begins anew where it points uphill."""

from dataclasses import dataclass

import torch
from torch import Tensor

from haltwise.update_rules import PooledGradient, State, SupportsChunks, UpdateRule, UpdateStep


@dataclass(frozen=True)
class Restarts(UpdateRule, SupportsChunks):
    """Its state has a velocity for each coordinate, and whole numbers and flags for a problem."""

    rate: float = 0.05
    """Share of the gradient that a step takes."""
    wait: int = 2
    """Steps between two restarts, at least."""

    def init(self, params: Tensor) -> State:
        steps = torch.zeros(len(params), dtype=torch.int64, device=params.device)
        return {
            "velocity": torch.zeros_like(params),
            "steps": steps,
            "restarted": torch.zeros_like(steps, dtype=torch.bool),
        }

    def sums(self, grad: Tensor, state: State) -> Tensor:
        return (grad * state["velocity"]).sum(1, keepdim=True)

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return self._move(grad, state, self.sums(grad, state))

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        assert pooled.sums is not None
        return self._move(grad, state, pooled.sums)

    def _move(self, grad: Tensor, state: State, slope: Tensor) -> UpdateStep:
        restarted = (slope[:, 0] > 0) & (state["steps"] >= self.wait)
        steps = (state["steps"] + 1).masked_fill(restarted, 0)
        share = (steps / (steps + 3)).to(grad.dtype).unsqueeze(1)
        velocity = share * state["velocity"] - self.rate * grad
        kept = {"velocity": velocity, "steps": steps, "restarted": restarted}
        return UpdateStep.without_readout(velocity, kept)
