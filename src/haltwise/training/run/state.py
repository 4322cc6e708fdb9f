"""The state of a run: what the next meta-step begins from, and what was counted so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from haltwise._core.tensors import require_like
from haltwise.training.optimization import MOMENTS, MetaAdam

__all__ = ["Counters", "TrainingState", "finite_only"]


@final
@dataclass
class Counters:
    """What a run counts, over interruptions and rollbacks; changed in place."""

    seconds: float = 0.0
    """Time spent on meta-steps."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Problems left out because they were not finite, by stream."""
    num_skipped: int = 0
    """Meta-steps without an update, for the meta-gradient was not finite."""
    skipped_in_a_row: int = 0
    """The last of them."""
    num_rollbacks: int = 0
    """Returns to the last good state in the present phase."""


@final
class TrainingState(NamedTuple):
    """The state after a validation: enough to go on to the same bits.

    Attributes:
        step: Meta-steps done.
        phase: Name of the phase.
        diverged: Whether the last validation found the training diverged.
        metrics: Of the last validation.
        tensors: Copies of the weights and of Adam's moments, under dotted names.
    """

    step: int
    phase: str
    diverged: bool
    metrics: dict[str, float]
    tensors: dict[str, Tensor]

    @classmethod
    def take(
        cls,
        step: int,
        phase: str,
        *,
        diverged: bool,
        metrics: dict[str, float],
        parameters: Mapping[str, nn.Parameter],
        adam: MetaAdam,
    ) -> Self:
        """Copy the state of a training."""
        tensors: dict[str, Tensor] = {
            f"weights.{name}": value for name, value in parameters.items()
        }
        for name, value in parameters.items():
            for key, moment in adam.state.get(value, {}).items():
                tensors[f"adam.{key}.{name}"] = moment
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        return cls(step, phase, diverged, metrics, copies)

    def put(self, parameters: Mapping[str, nn.Parameter], adam: MetaAdam) -> None:
        """Set weights and moments to those of the state."""
        adam.state.clear()
        for name, value in parameters.items():
            value.data.copy_(self.tensors[f"weights.{name}"])
            if f"adam.step.{name}" in self.tensors:
                adam.state[value] = {
                    key: self.tensors[f"adam.{key}.{name}"].clone() for key in MOMENTS
                }

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors as a JSON object, which knows no NaN."""
        document = self._asdict()
        del document["tensors"]
        document["metrics"] = finite_only(self.metrics)
        return document

    @classmethod
    def from_json(
        cls,
        document: Mapping[str, Any],
        tensors: dict[str, Tensor],
        parameters: Mapping[str, nn.Parameter],
        device: torch.device | str,
    ) -> Self:
        """Make the state that `to_json` and `tensors` were written of.

        Raises:
            InputError: The tensors do not fit the parameters.
        """
        like: dict[str, Tensor] = {f"weights.{name}": value for name, value in parameters.items()}
        for name, value in parameters.items():
            if f"adam.step.{name}" in tensors:
                like[f"adam.step.{name}"] = torch.zeros(())
                like |= {f"adam.{key}.{name}": value for key in MOMENTS[1:]}
        require_like(tensors, like)
        placed = {
            name: value if name.startswith("adam.step.") else value.to(device)
            for name, value in tensors.items()
        }
        metrics = {
            name: math.nan if value is None else value
            for name, value in document["metrics"].items()
        }
        return cls(document["step"], document["phase"], document["diverged"], metrics, placed)


def finite_only(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity, which JSON does not know, by None."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
