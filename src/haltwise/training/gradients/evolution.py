"""Evolution strategies: the gradient of the objective smoothed over the weights, from its values.

Backpropagation through an unroll takes the optimizee's gradients for constants and, cut into
segments, sees no further than one of them; through a long one of a chaotic loss it explodes (Metz
et al. 2019, "Understanding and correcting pathologies in the training of learned optimizers").
Differences of whole unrolls do neither, at the price of noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.unroll import unroll
from haltwise.tasks.base import TaskBatch
from haltwise.training.gradients.base import (
    BoundEstimator,
    Estimate,
    GradientEstimator,
    Objective,
)

__all__ = ["Evolution"]


@final
@dataclass(frozen=True)
class Evolution(GradientEstimator):
    """Antithetic evolution strategies (Salimans et al. 2017) over the whole unroll.

    For weights w and eps ~ N(0, I), the gradient of E J(w + sigma eps) is

        E (J(w + sigma eps) - J(w - sigma eps)) eps / (2 sigma),

    estimated by the mean over `num_pairs` draws; both unrolls of a pair see the same problems and
    the same minibatches.
    """

    sigma: float = 0.02
    """Standard deviation of the perturbations of every weight."""
    num_pairs: int = 1
    """Pairs of unrolls of a shard of a meta-step."""

    def __post_init__(self) -> None:
        require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")
        require(self.num_pairs >= 1, f"num_pairs must be at least 1, got {self.num_pairs}")

    def bind(self, model: OptimizerModel, num_steps: int) -> BoundEstimator:
        return _Bound(self, model, num_steps)


@final
class _Bound(BoundEstimator):
    def __init__(self, settings: Evolution, model: OptimizerModel, num_steps: int) -> None:
        self._settings, self._model, self._num_steps = settings, model, num_steps

    @torch.no_grad()
    def accumulate(
        self,
        batch: TaskBatch,
        price: Tensor,
        objective: Objective,
        size: int,
        generator: torch.Generator,
    ) -> Estimate:
        sigma, num_pairs = self._settings.sigma, self._settings.num_pairs
        learned = [weight for weight in self._model.parameters() if weight.requires_grad]
        finite = torch.ones_like(price, dtype=torch.bool)
        total, draws = torch.zeros_like(price), []
        for _ in range(num_pairs):
            noise = [
                torch.randn(
                    weight.shape, generator=generator, dtype=weight.dtype, device=generator.device
                ).to(weight.device)
                for weight in learned
            ]
            pair, before = [], generator.get_state()
            for sign in (1, -1):
                generator.set_state(before)  # what an objective draws is the same for both
                with _moved(learned, noise, sign * sigma):
                    found = unroll(
                        self._model, batch, self._num_steps, price, segment=self._num_steps
                    )
                    trajectory = found.trajectory
                    # What is said of the start is asked of the same weights.
                    pair.append(objective(trajectory.excess, trajectory.outputs, price))
                finite &= found.finite & pair[-1].isfinite()
            total += (pair[0] + pair[1]) / (2 * num_pairs)
            draws.append((noise, pair[0] - pair[1]))
        for noise, difference in draws:
            slope = difference[finite].sum() / (2 * sigma * num_pairs * size)
            for weight, value in zip(learned, noise, strict=True):
                own = value * slope.to(value)
                weight.grad = own if weight.grad is None else weight.grad + own
        return Estimate(total[finite], int((~finite).sum()))


@contextmanager
def _moved(weights: list[torch.nn.Parameter], noise: list[Tensor], scale: float) -> Iterator[None]:
    """Weights moved along the noise; as they were, to the bit, after."""
    kept = [weight.detach().clone() for weight in weights]
    try:
        for weight, value in zip(weights, noise, strict=True):
            weight.add_(value, alpha=scale)
        yield
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)


ESTIMATORS = {"evolution": Evolution}
