"""The contract of a gradient estimator."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from haltwise.models.optimizer_model import OptimizerModel
from haltwise.tasks.base import TaskBatch

__all__ = ["BoundEstimator", "Estimate", "GradientEstimator", "Objective"]

Objective = Callable[[Tensor, Mapping[str, Tensor], Tensor], Tensor]
"""What is minimised, of excess [B, T+1], the halting model's outputs and prices [B]; shape [B]."""


class Estimate(NamedTuple):
    """What a gradient was estimated from.

    Attributes:
        losses: The objective of each problem used, shape [n].
        num_left_out: Problems left out because they were not finite.
    """

    losses: Tensor
    num_left_out: int


class BoundEstimator(ABC):
    """A gradient estimator at work on one model."""

    @abstractmethod
    def accumulate(
        self,
        batch: TaskBatch,
        price: Tensor,
        objective: Objective,
        size: int,
        generator: torch.Generator,
    ) -> Estimate:
        """Add the gradient of the objective, summed over problems / `size`, to the model's `.grad`.

        Args:
            batch: B problems.
            price: c, shape [B].
            objective: What is minimised.
            size: Problems of the whole meta-step, of which these are a shard.
            generator: Draws what the estimator needs.
        """


@dataclass(frozen=True)
class GradientEstimator(ABC):
    """How the meta-gradient is found: a frozen dataclass of plain settings."""

    @abstractmethod
    def bind(self, model: OptimizerModel, num_steps: int) -> BoundEstimator:
        """Set to work on a model, T = `num_steps` steps an unroll."""
