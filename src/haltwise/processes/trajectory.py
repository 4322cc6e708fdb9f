"""The one record of what a process went through."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import got
from haltwise._core.tensors import copied_array, map_tensors, widened
from haltwise.processes.observation import StepObservation, known

__all__ = ["Trajectory"]


@final
@dataclass(frozen=True)
class Trajectory:
    """The course of B items over T steps, with the value of a stop at each step.

    It may come from a process of this package or from any loop: a matrix of losses is enough, and
    what is not known is None. Arrays of NumPy are copied to tensors. Whole numbers and flags become
    float64, half precision becomes float32. No autograd graph hangs on it, and nothing but
    `outputs` depends on a price or on a halting model.

    Examples:
        >>> losses = np.array([[3.0, 2.0, 1.5]])
        >>> recorded = Trajectory(losses, losses - losses[:, -1:])
        >>> recorded.num_steps, recorded.excess
        (2, tensor([[1.5000, 0.5000, 0.0000]], dtype=torch.float64))
    """

    loss: Tensor
    """Observed loss at steps 0..T, shape [B, T+1]."""
    excess: Tensor
    """Scored loss above the reference at steps 0..T, shape [B, T+1]; the observed loss itself
    where there is nothing better."""
    log_grad_norm: Tensor | None = None
    """Natural logarithm of the root mean square gradient at steps 0..T, shape [B, T+1]."""
    signals: Tensor | None = None
    """See `haltwise.processes.signals`, at steps 0..T-1, shape [B, T, S]."""
    readouts: Tensor | None = None
    """What the process shows of its inner state at steps 0..T-1, shape [B, T, R]."""
    final: Tensor | None = None
    """What is returned at step T, shape [B, D]; [B, 0] where problems of several sizes joined."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """What a halting model puts out at steps 0..T-1, by name, shapes [B, T, ...]."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "outputs":
                given = {f"outputs[{name!r}]": entry for name, entry in value.items()}
                if any(isinstance(entry, np.ndarray) for entry in given.values()):
                    tensors = (_tensor(name, entry) for name, entry in given.items())
                    object.__setattr__(self, "outputs", dict(zip(value, tensors, strict=True)))
            elif value is not None and not (item.name == "final" and isinstance(value, Tensor)):
                object.__setattr__(self, item.name, _tensor(item.name, value))
        require(
            self.loss.ndim == 2 and self.loss.shape[1] > 0,
            "losses must be a matrix [n, T+1] of one column or more, got shape "
            f"{list(self.loss.shape)}",
        )
        per_state = {"excess": self.excess, "log_grad_norm": self.log_grad_norm}
        per_step = {"signals": self.signals, "readouts": self.readouts, **self.outputs}
        shapes = {
            name: list(value.shape)
            for name, value in {"loss": self.loss, **per_state, **per_step}.items()
            if value is not None
        }
        require(
            all(
                shape[:2] == [self.num_items, self.num_steps]
                if name in per_step
                else shape == shapes["loss"]
                for name, shape in shapes.items()
            ),
            "a trajectory must have losses of shape [n, T+1], signals and outputs of [n, T, ...]; "
            "got " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
        )

    def __repr__(self) -> str:
        known = [
            each.name
            for each in fields(self)
            if each.name != "outputs" and getattr(self, each.name) is not None
        ]
        outputs = f"; outputs {', '.join(self.outputs)}" if self.outputs else ""
        return (
            f"Trajectory({self.num_items:,} items over {self.num_steps:,} steps: "
            f"{', '.join(known)}{outputs})"
        )

    @property
    def num_items(self) -> int:
        """B."""
        return self.loss.shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.loss.shape[1] - 1

    @property
    def finite(self) -> Tensor:
        """Which items stayed finite throughout, bool [B]."""
        finite = self.excess.isfinite().all(1) & self.loss.isfinite().all(1)
        for value in (self.readouts, self.signals, *self.outputs.values()):
            if value is not None:
                finite = finite & value.isfinite().flatten(1).all(1)
        return finite

    def known(self, name: str) -> Tensor:
        """The field or output `name`; raises `InputError` where it is not known."""
        return known(self, name)

    def shown_readouts(self) -> Tensor:
        """The read-outs, empty where the process shows none, shape [B, T, R]."""
        if self.readouts is not None:
            return self.readouts
        return self.loss.new_empty(self.num_items, self.num_steps, 0)

    def select(self, index: Tensor) -> "Trajectory":
        """The items at `index` (int64 [M])."""
        return map_tensors(self, lambda value: value.index_select(0, index))

    @staticmethod
    def join(parts: Sequence["Trajectory"]) -> "Trajectory":
        """The items of all parts in order; what one of them lacks is left out."""
        if len({None if part.final is None else part.final.shape[1:] for part in parts}) > 1:
            parts = [
                part if part.final is None else replace(part, final=part.loss[:, :0])
                for part in parts
            ]
        joined: dict[str, Any] = {}
        for item in fields(Trajectory):
            values = [getattr(part, item.name) for part in parts]
            if item.name == "outputs":
                if all(value.keys() == values[0].keys() for value in values):
                    joined["outputs"] = {
                        name: torch.cat([value[name] for value in values]) for name in values[0]
                    }
            elif all(value is not None for value in values):
                joined[item.name] = torch.cat(values)
        return Trajectory(**joined)

    def __iter__(self) -> Iterator[StepObservation]:
        """The observations of steps 0..T-1, in order."""
        for step in range(self.num_steps):
            yield StepObservation(
                step,
                self.loss[:, step],
                _at(self.log_grad_norm, step),
                _at(self.signals, step),
                _at(self.readouts, step),
                {name: value[:, step] for name, value in self.outputs.items()},
            )


def _tensor(name: str, value: object) -> Tensor:
    """Real numbers in float32 or float64; whole ones and flags are as good as others."""
    found = copied_array(value, name) if isinstance(value, np.ndarray) else value
    require(
        isinstance(found, Tensor),
        f"{name} must be a tensor or an array of NumPy, {got(found)}",
    )
    assert isinstance(found, Tensor)
    require(
        found.layout == torch.strided,
        f"{name} is {str(found.layout).removeprefix('torch.')}, of which items cannot be "
        f"selected; make it dense by {name}.to_dense()",
    )
    require(
        not found.is_complex(),
        f"{name} must hold real numbers, got {found.dtype}; give their size or their real "
        f"part, {name}.real",
    )
    found = found.detach() if found.requires_grad else found
    if found.dtype in (torch.float32, torch.float64):
        return found
    return found.float() if found.is_floating_point() else widened(found)


def _at(value: Tensor | None, step: int) -> Tensor | None:
    return None if value is None else value[:, step]
