"""The meta-optimizer: Adam with a cosine, clipped, skipping what is not finite."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from haltwise.training.settings import AdamSettings

__all__ = ["MOMENTS", "MetaAdam"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Names of Adam's state of a parameter."""


@final
class MetaAdam:
    """Adam on the parameters that learn in a phase, its rate decayed to 1 % by a cosine.

    Those of a group are clipped together.
    """

    def __init__(self, settings: AdamSettings, groups: Sequence[list[nn.Parameter]]) -> None:
        self._settings, self._groups = settings, groups
        self.learning = [weight for group in groups for weight in group]
        self._adam = torch.optim.Adam(self.learning, lr=settings.learning_rate)
        self.state: dict[Tensor, dict[str, Tensor]] = self._adam.state
        """Moments by parameter, to be saved and restored."""

    def step(self, loss: float, step: int, num_steps: int, learning_rate: float) -> bool:
        """Update the parameters by their gradients, clipped; whether all, `loss` too, was finite.

        `step` of the phase's `num_steps` are done; the cosine lowers the learning rate.
        """
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        self._adam.param_groups[0]["lr"] = learning_rate * (0.01 + 0.99 * cosine)
        norms = [
            torch.nn.utils.clip_grad_norm_(weights, self._settings.clip_norm)
            for weights in self._groups
        ]
        if not (math.isfinite(loss) and all(norm.isfinite() for norm in norms)):
            return False
        self._adam.step()
        return True
