"""The meta-optimizer: Adam with a cosine, clipped, skipping what is not finite."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from haltwise.training.settings import AdamSettings

__all__ = ["MOMENTS", "MetaAdam"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Names of Adam's state of a parameter."""


@final
class MetaAdam:
    """Adam on the parameters that learn in a phase, its rate decayed to 1 % by a cosine.

    Those of a group are clipped together. It is what `torch.optim.Adam` is, whose objects import
    PyTorch's compiler, which takes seconds.
    """

    def __init__(self, settings: AdamSettings, groups: Sequence[list[nn.Parameter]]) -> None:
        self._settings, self._groups = settings, groups
        self.learning = [weight for group in groups for weight in group]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """Moments by parameter, to be saved and restored."""

    def step(self, loss: float, step: int, num_steps: int, learning_rate: float) -> bool:
        """Update the parameters by their gradients, clipped; whether all, `loss` too, was finite.

        `step` of the phase's `num_steps` are done; the cosine lowers the learning rate.
        """
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        norms = [
            torch.nn.utils.clip_grad_norm_(weights, self._settings.clip_norm)
            for weights in self._groups
        ]
        if not (math.isfinite(loss) and all(norm.isfinite() for norm in norms)):
            return False
        self._advance(learning_rate * (0.01 + 0.99 * cosine))
        return True

    @torch.no_grad()
    def _advance(self, learning_rate: float) -> None:
        weights = [weight for weight in self.learning if weight.grad is not None]
        for weight in weights:
            if weight not in self.state:
                values = (torch.zeros(()), torch.zeros_like(weight), torch.zeros_like(weight))
                self.state[weight] = dict(zip(MOMENTS, values, strict=True))
        steps, means, squares = (
            [self.state[weight][name] for weight in weights] for name in MOMENTS
        )
        adam(
            weights,  # type: ignore[arg-type]
            [weight.grad for weight in weights],  # type: ignore[misc]
            means,
            squares,
            [],
            steps,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
