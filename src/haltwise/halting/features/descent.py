"""Features of a descent in no units: neither those of the loss, nor those of the parameters."""

from typing import final

import torch
from torch import Tensor

from haltwise.halting.features.base import FeatureSet
from haltwise.processes.signals import SIGNALS

__all__ = ["DescentFeatures"]

_NUM_CHANGING = 6  # features whose change since the last step is a feature, too
_FAR = 1e8  # the largest gain, in prices, told from infinite


@final
class DescentFeatures(FeatureSet):
    """Gains in prices, factors by which sizes have changed, and cosines.

    Multiply the loss and the price by a number, add one to the loss, or measure the parameters in
    other units: the features stay. So a halter that reads nothing else serves losses of any size.
    """

    has_units = False

    @property
    def num_features(self) -> int:
        return 2 * _NUM_CHANGING + 9

    def init(self, num_items: int, like: Tensor) -> dict[str, Tensor]:
        return {
            "previous": like.new_zeros(num_items, _NUM_CHANGING),
            "first": like.new_zeros(num_items, 4),  # loss, logarithms of sizes
            "last_loss": like.new_zeros(num_items),
            "lowest": like.new_full((num_items,), torch.inf),
        }

    def extract(
        self, signals: Tensor, price: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        seen = dict(zip(SIGNALS, signals.movedim(-1, 0), strict=True))
        loss, begins = seen["loss"], seen["step"] == 0
        now = torch.stack((loss, seen["log_grad"], seen["log_update"], seen["log_curvature"]), -1)
        # Curvature is known from the second step on.
        starts = torch.stack((begins, begins, begins, seen["step"] <= 1), -1)
        first = _first(now, starts, memory["first"])
        before = torch.cat((memory["last_loss"].unsqueeze(1), loss[:, :-1]), dim=1)
        lowest = torch.cat((memory["lowest"].unsqueeze(1), loss), dim=1).cummin(1).values[:, 1:]
        gains = torch.stack(
            (
                (before - loss).masked_fill(begins, 0),
                seen["gain"],
                seen["gain"] - seen["bend"],
                seen["least_gain"],
                seen["most_gain"],
                first[..., 0] - loss,
                loss - lowest,
                seen["overshoot"],
            )
        ).div_(price.unsqueeze(1))
        gains.clamp_(-_FAR, _FAR).asinh_().div_(4)
        factors = (now - first)[..., 1:].movedim(-1, 0) / 4
        changing = torch.cat((gains[:5], factors[:1]))
        previous = torch.cat((memory["previous"].T.unsqueeze(-1), changing[..., :-1]), dim=-1)
        others = (gains[5:], factors[1:])
        angles = [seen[name] for name in ("descent_cosine", "grad_cosine", "update_cosine")]
        features = torch.cat(
            (
                changing,
                (changing - previous).masked_fill_(begins, 0),
                *others,
                torch.stack((*angles, seen["step"].log1p() / 2)),
            )
        )
        return features.movedim(0, -1), {
            "previous": changing[..., -1].T,
            "first": first[:, -1],
            "last_loss": loss[:, -1],
            "lowest": lowest[:, -1],
        }

    def blank(self, price: Tensor) -> Tensor:
        features = price.new_zeros(len(price), self.num_features)
        features[:, -1] = -1.0
        return features


def _first(now: Tensor, starts: Tensor, kept: Tensor) -> Tensor:
    """The values [B, T, 4] of the last step at which each started, `kept` where that is earlier."""
    steps = torch.arange(now.shape[1], device=now.device).view(1, -1, 1)
    at = torch.where(starts, steps, -1).cummax(1).values
    found = now.gather(1, at.clamp_min(0))
    return torch.where(at >= 0, found, kept.unsqueeze(1))


FEATURES = {"descent": DescentFeatures()}
