"""The first rounds of loops and processes trained on, by which other scales are recognised."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from haltwise._core.tensors import ZERO, widened
from haltwise.models.scales import UsualRange
from haltwise.processes.signals import SIGNALS
from haltwise.processes.trajectory import Trajectory

__all__ = ["CHECKED", "FirstRounds"]

CHECKED = (0, 1, 2, 4, 8)
"""The rounds at which a loop is compared."""

_FEWEST = 20  # items of which a quantity is known, or their range means nothing
_FAR = math.log(10.0)  # beyond a range, or half its width if that is more: few items tell a range


@final
@dataclass(frozen=True)
class FirstRounds:
    """Where the natural logarithms of some sizes lay in the first rounds, or steps, trained on.

    Unlike `haltwise.models.scales.Scales` it needs neither gradients nor many items, and serves
    whatever shows its loss. Nothing is translated by it: other scales are warned of.

    Attributes:
        ranges: By the round and the size: "0 gradient" and "0 update", root mean squares of the
            first round; "k gain", from the first loss down to the lowest up to round k.

    Examples:
        >>> rate = torch.rand(50, 1, generator=torch.Generator().manual_seed(0))
        >>> losses = (0.5 + 0.4 * rate) ** torch.arange(10)
        >>> seen = FirstRounds.of(Trajectory(losses, losses))
        >>> seen.misfits(2, 1e-3 * losses[:1, 0], 1e-3 * losses[:1, 2])
        {'gain': tensor([True])}
    """

    ranges: Mapping[str, UsualRange]

    @classmethod
    def of(cls, trajectory: Trajectory) -> Self | None:
        """Those of recorded items; None where there are too few."""
        found = {}
        for step in CHECKED:
            if step >= trajectory.loss.shape[1]:
                break
            signals = None if trajectory.signals is None else trajectory.signals[:, 0]
            lowest = trajectory.loss[:, : step + 1].amin(1)
            for name, values in _sizes(step, trajectory.loss[:, 0], lowest, signals).items():
                known = values[values.isfinite()]
                if len(known) >= _FEWEST:
                    found[f"{step} {name}"] = UsualRange.of(known)
        return cls(found) if found else None

    def misfits(
        self, step: int, first: Tensor, lowest: Tensor, signals: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Which items lie far outside the range in training, by the size that does.

        Args:
            step: One of `CHECKED`.
            first: Their first loss, shape [B].
            lowest: The lowest loss up to this step, shape [B].
            signals: Of the first step, shape [B, S], which tell of gradients and updates.

        Returns:
            bool [B] by the size, of those that are known; never where there was nothing, such as
            no gain, which tells no scale.
        """
        found = {}
        for name, values in _sizes(step, first, lowest, signals).items():
            usual = self.ranges.get(f"{step} {name}")
            if usual is not None:
                margin = max(_FAR, (usual.high - usual.low) / 2)
                found[name] = values.isfinite() & ~usual.holds(values, margin)
        return found

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """That of a JSON object that a card wrote.

        Raises:
            InputError: A value is impossible.
        """
        return cls({name: UsualRange(**one) for name, one in document["ranges"].items()})


def _sizes(step: int, first: Tensor, lowest: Tensor, signals: Tensor | None) -> dict[str, Tensor]:
    """Logarithms of what is known of a step, NaN or -inf where it is nothing."""
    if step:
        return {"gain": (widened(first) - widened(lowest)).log()}
    if signals is None:
        return {}
    shown = {name: widened(signals[:, SIGNALS.index(name)]) for name in ("log_grad", "log_update")}
    known = {name: values.masked_fill(values <= ZERO, torch.nan) for name, values in shown.items()}
    return {"gradient": known["log_grad"], "update": known["log_update"]}
