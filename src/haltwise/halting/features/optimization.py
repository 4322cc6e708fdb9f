"""Features of an optimization: what the loss and the gradient say about a further step."""

from typing import final

import torch
from torch import Tensor

from haltwise._kernels import native
from haltwise._kernels.native_features import FeatureMemory, optimization_features
from haltwise.halting.features.base import FeatureSet
from haltwise.processes.signals import SIGNALS

__all__ = ["OptimizationFeatures"]

_NUM_CHANGING = 9  # features whose change since the last step is a feature, too
_HUGE = 1e30  # quotients of it are still finite in float32
_FAR = 1e8  # the largest gain, in prices, told from infinite


@final
class OptimizationFeatures(FeatureSet):
    """Gains in prices, scales of gradient and update, and cosines, with their last changes."""

    @property
    def num_features(self) -> int:
        return 2 * _NUM_CHANGING + 8

    def init(self, num_items: int, like: Tensor) -> dict[str, Tensor]:
        return {
            "previous": like.new_zeros(num_items, _NUM_CHANGING),
            "last_loss": like.new_zeros(num_items),
            "lowest": like.new_full((num_items,), torch.inf),
        }

    def extract(
        self, signals: Tensor, price: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if native.serves_all(signals, price, *memory.values()):
            features, after = optimization_features(signals, price, FeatureMemory(**memory))
            return features, after._asdict()
        return _extract(signals, price, memory)

    def blank(self, price: Tensor) -> Tensor:
        features = price.new_zeros(len(price), self.num_features)
        features[:, -2] = -1.0
        features[:, -1] = price.log() / 2
        return features


def _extract(
    signals: Tensor, price: Tensor, memory: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """`extract` by PyTorch's operations: what the compiled kernel computes."""
    seen = dict(zip(SIGNALS, signals.movedim(-1, 0), strict=True))
    cost = price.unsqueeze(1)
    loss = seen["loss"]
    first = seen["step"] == 0
    before = torch.cat((memory["last_loss"].unsqueeze(1), loss[:, :-1]), dim=1)
    lowest = torch.cat((memory["lowest"].unsqueeze(1), loss), dim=1).cummin(1).values[:, 1:]
    gains = torch.stack(
        (
            loss,
            lowest,
            (before - loss).masked_fill_(first, 0),
            seen["gain"],
            seen["gain"] - seen["bend"],
            seen["least_gain"],
            seen["most_gain"],
            loss - lowest,
            seen["overshoot"],
        )
    ).div_(cost)
    gains[:2].clamp_(-_HUGE, _HUGE)
    gains[2:].clamp_(-_FAR, _FAR)
    gains.asinh_().div_(4)
    gains[:2].div_(2)
    # Planes of one feature each.
    now = torch.stack(
        (
            seen["log_grad"] / 4,
            seen["log_update"] / 4,
            gains[0],
            *gains[2:7],
            seen["log_curvature"] / 4,
        )
    )
    previous = torch.cat((memory["previous"].T.unsqueeze(-1), now[..., :-1]), dim=-1)
    others = torch.stack(
        (
            gains[7],
            gains[1],
            gains[8],
            seen["descent_cosine"],
            seen["grad_cosine"],
            seen["update_cosine"],
            seen["step"].log1p() / 2,
            (cost.log() / 2).expand_as(loss),
        )
    )
    change = (now - previous).masked_fill_(first, 0)
    features = torch.cat((now, change, others)).movedim(0, -1)
    memory = {"previous": now[..., -1].T, "last_loss": loss[:, -1], "lowest": lowest[:, -1]}
    return features, memory


FEATURES = {"optimization": OptimizationFeatures()}
