"""A stage of residual units that images, or positions in them, leave early."""

from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from haltwise._core.errors import require
from haltwise._core.settings import got, whole_number
from haltwise.nn.base import (
    AdaptiveProcess,
    ItemStep,
    State,
    lent,
    require_kept,
    require_shape,
    version_of,
)
from haltwise.nn.inputs import Inputs, require_tensor

__all__ = ["ResidualStage"]


@final
class ResidualStage(AdaptiveProcess):
    """Residual units x + f(x) on images [n, C, H, W] (Figurnov et al. 2017: ACT and SACT).

    Per image an item returns [C, H, W]. Per position it returns its C channels, so that outputs are
    [n, H, W, C], channels last; a position that has ended is what later units see of it. The head
    reads the channels, at a position with the means of the 3 x 3 around it, where zeros lie beyond
    the border, and of the image.

    Args:
        units: f of each unit, which keep the shape.
        num_channels: C.
        costs: Of ending behind each unit, for instance in megaflops, rising; 1, 2, ... if None.
        per: What halts.

    Examples:
        >>> units = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
        >>> stage = ResidualStage(units, 4, per="position")
        >>> stage.step(0, stage.init(torch.randn(2, 4, 8, 8))).output.shape
        torch.Size([2, 8, 8, 4])
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        num_channels: int,
        *,
        costs: Sequence[float] | None = None,
        per: Literal["image", "position"] = "image",
    ) -> None:
        super().__init__(len(units), costs)
        require(per in ("image", "position"), f"per must be 'image' or 'position', got {per!r}")
        self.units = nn.ModuleList(units)
        self.items_interact = per == "position"
        self.num_channels = whole_number("num_channels", num_channels)
        self.num_features = (3 if self.items_interact else 2) * self.num_channels

    def init(self, inputs: Inputs) -> State:
        inputs = require_tensor(inputs, "ResidualStage")
        require(
            inputs.ndim == 4 and inputs.shape[1] == self.num_channels,
            f"inputs must be images [n, {self.num_channels}, H, W], {got(inputs)}",
        )
        return {"image": inputs}

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        assert isinstance(step, int)  # units differ
        image, unit = state["image"], self.units[step]
        version, given = version_of(image), lent(unit, image)
        change = unit(given)
        require_shape(change, image, f"unit {step}")
        if active is not None:
            require_kept(image, version, f"unit {step} changes positions that have ended")
        moved = given + change
        image = moved if active is None else torch.where(active.unsqueeze(1), moved, image)
        mean = image.mean((2, 3))
        if not self.items_interact:
            return ItemStep(image, torch.cat((mean, image.amax((2, 3))), 1), {"image": image})
        around = avg_pool2d(image, 3, stride=1, padding=1)
        whole = mean.unsqueeze(-1).unsqueeze(-1).expand_as(image)
        features = torch.cat((image, around, whole), 1).movedim(1, -1)
        return ItemStep(image.movedim(1, -1), features, {"image": image})
