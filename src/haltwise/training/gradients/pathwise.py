"""The pathwise gradient: backpropagation through the unroll, exact to first order."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.cuda_graph import CapturedUnroll
from haltwise.tasks.base import TaskBatch
from haltwise.training.gradients.base import (
    BoundEstimator,
    Estimate,
    GradientEstimator,
    Objective,
)

__all__ = ["Pathwise"]


@final
@dataclass(frozen=True)
class Pathwise(GradientEstimator):
    """Backpropagate through the unroll, the optimizee's gradients taken for constants (L2L)."""

    segment: int = 50
    """Steps that are recomputed at once in the backward pass; bounds the memory."""
    truncate: bool = False
    """Whether the state's gradient is cut between segments."""

    def __post_init__(self) -> None:
        require(self.segment >= 1, f"segment must be at least 1, got {self.segment}")

    def bind(self, model: OptimizerModel, num_steps: int) -> BoundEstimator:
        return _Bound(self, model, num_steps)


@final
class _Bound(BoundEstimator):
    def __init__(self, settings: Pathwise, model: OptimizerModel, num_steps: int) -> None:
        self._unroll = CapturedUnroll(
            model, num_steps, settings.segment, truncate=settings.truncate
        )

    def accumulate(
        self,
        batch: TaskBatch,
        price: Tensor,
        objective: Objective,
        size: int,
        generator: torch.Generator,
    ) -> Estimate:
        unrolled = self._unroll(batch, price)
        finite = unrolled.finite
        num_left_out = int((~finite).sum())
        if num_left_out:
            index = finite.nonzero().squeeze(1)
            if len(index) == 0:
                return Estimate(price.new_zeros(0), num_left_out)
            unrolled = unrolled.select(index)
        trajectory = unrolled.trajectory
        excess = trajectory.excess.clone().requires_grad_()
        outputs = {
            name: value.clone().requires_grad_() for name, value in trajectory.outputs.items()
        }
        losses = objective(excess, outputs, unrolled.price)
        (losses.sum() / size).backward()
        assert excess.grad is not None
        cotangents = {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in outputs.items()
        }
        self._unroll.backpropagate(unrolled, excess.grad, cotangents)
        return Estimate(losses.detach(), num_left_out)


ESTIMATORS = {"pathwise": Pathwise}
