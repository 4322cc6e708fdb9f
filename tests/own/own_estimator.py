"""A gradient estimator of one's own: the pathwise one, pointing the other way."""

from dataclasses import dataclass

import torch
from torch import Tensor

from haltwise.models import OptimizerModel
from haltwise.tasks import TaskBatch
from haltwise.training.gradients import BoundEstimator, Estimate, GradientEstimator, Pathwise
from haltwise.training.gradients.base import Objective


class _Bound(BoundEstimator):
    def __init__(self, inner: BoundEstimator, model: OptimizerModel, factor: float) -> None:
        self.inner, self.model, self.factor = inner, model, factor

    def accumulate(
        self,
        batch: TaskBatch,
        price: Tensor,
        objective: Objective,
        size: int,
        generator: torch.Generator,
    ) -> Estimate:
        estimate = self.inner.accumulate(batch, price, objective, size, generator)
        for weight in self.model.parameters():
            if weight.grad is not None:
                weight.grad.mul_(self.factor)
        return estimate


@dataclass(frozen=True)
class Scaled(GradientEstimator):
    """The pathwise gradient times a factor."""

    factor: float = -1.0
    """What the gradient is multiplied by."""

    def bind(self, model: OptimizerModel, num_steps: int) -> BoundEstimator:
        return _Bound(Pathwise().bind(model, num_steps), model, self.factor)
