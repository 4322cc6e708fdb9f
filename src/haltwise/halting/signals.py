"""What a halting head sees of a step: a few numbers per problem, in units of the price.

None depends on the number of parameters or on their order, so a head serves problems of any size;
gains are measured in prices, so a head serves any price. All are data: no gradient flows through.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from haltwise._tensors import log_rms

__all__ = [
    "NUM_FEATURES",
    "StepSignals",
    "blank_features",
    "extract_features",
    "init_features",
]

NUM_FEATURES = 16
_MEMORY = 0.8  # of the running means, in steps: 1 / (1 - .8) = 5


class StepSignals(NamedTuple):
    """What is known of every problem once the gradient at theta_t has been seen.

    Attributes:
        step: t, the same for all problems.
        loss: Observed loss at theta_t, shape [B].
        grad: Gradient at theta_t, shape [B, D].
        update: g_t, which would lead to theta_{t+1}, shape [B, D].
    """

    step: int
    loss: Tensor
    grad: Tensor
    update: Tensor


def init_features(num_problems: int, like: Tensor) -> dict[str, Tensor]:
    """The memory of the features before the first step, in the dtype and device of `like`."""
    return {
        "previous": like.new_zeros(num_problems, 5),
        "mean": like.new_zeros(num_problems, 3),
        "lowest": like.new_full((num_problems,), torch.inf),
        "last_loss": like.new_zeros(num_problems),
    }


def blank_features(price: Tensor) -> Tensor:
    """Features before anything is known, [B, NUM_FEATURES]: only the price, and no step yet."""
    features = price.new_zeros(len(price), NUM_FEATURES)
    features[:, -2] = -1.0
    features[:, -1] = price.log() / 2
    return features


def extract_features(
    signals: StepSignals, price: Tensor, memory: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of step t and the memory for step t + 1.

    Args:
        signals: The step.
        price: c, shape [B].
        memory: From `init_features` or the step before.

    Returns:
        Features [B, NUM_FEATURES], of order one, and the new memory.
    """
    step, loss, grad, update = signals
    first = step == 0
    last_gain = torch.zeros_like(loss) if first else memory["last_loss"] - loss
    lowest = torch.minimum(memory["lowest"], loss)
    # What the update gains to first order, <-gamma_t, g_t>: a forecast the optimizer makes itself.
    forecast = -(grad * update).sum(-1)
    now = torch.stack(
        (
            log_rms(grad) / 4,
            log_rms(update) / 4,
            torch.asinh(forecast / price) / 4,
            torch.asinh(last_gain / price) / 4,
            torch.asinh(loss / price) / 8,
        ),
        dim=-1,
    )
    change = torch.zeros_like(now) if first else now - memory["previous"]
    recent = now[:, [0, 2, 3]]
    mean = recent if first else _MEMORY * memory["mean"] + (1 - _MEMORY) * recent
    features = torch.cat(
        (
            now,
            change,
            mean,
            torch.asinh((loss - lowest) / price).unsqueeze(-1) / 4,
            torch.full_like(loss, step).log1p().unsqueeze(-1) / 2,
            price.log().unsqueeze(-1) / 2,
        ),
        dim=-1,
    )
    memory = {"previous": now, "mean": mean, "lowest": lowest, "last_loss": loss}
    return features, memory
