"""Stop rules: fed one step of a whole batch at a time, they answer which problems stop now."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from haltwise._errors import require

__all__ = ["Seen", "StopRule", "Traces", "decisions"]


class Seen(NamedTuple):
    """What a stop rule may know at step t, when the gradient at theta_t has been seen.

    Attributes:
        step: t.
        loss: Observed loss at theta_t, shape [B].
        log_grad_norm: log of the root mean square of the gradient's entries, shape [B].
        increments: Of the softmax posterior, the prior's included, shape [B, 2]; see
            `HaltingOutput`.
        hazard_logits: Of the stick-breaking posterior, shape [B, 2].
        hold_logits: log-odds that theta_t is better than theta_{t+1}, shape [B].
    """

    step: int
    loss: Tensor
    log_grad_norm: Tensor
    increments: Tensor
    hazard_logits: Tensor
    hold_logits: Tensor


@final
@dataclass(frozen=True)
class Traces:
    """What n problems went through in T steps, and what each stop would have been worth."""

    loss: Tensor
    """Observed loss at theta_0..theta_T, shape [n, T+1]."""
    excess: Tensor
    """Scored loss above the reference at theta_0..theta_T, shape [n, T+1]."""
    log_grad_norm: Tensor
    """Shape [n, T+1]."""
    increments: Tensor
    """At theta_0..theta_{T-1}, shape [n, T, 2]."""
    hazard_logits: Tensor
    """At theta_0..theta_{T-1}, shape [n, T, 2]."""
    hold_logits: Tensor
    """At theta_0..theta_{T-1}, shape [n, T]."""

    def __post_init__(self) -> None:
        require(
            self.loss.shape == self.excess.shape == self.log_grad_norm.shape
            and self.increments.shape == self.hazard_logits.shape
            and self.increments.shape == (self.num_problems, self.num_steps, 2)
            and self.hold_logits.shape == (self.num_problems, self.num_steps),
            "traces must have shapes [n, T+1], the head's outputs [n, T, 2] and [n, T]; got "
            + ", ".join(str(tuple(getattr(self, field.name).shape)) for field in fields(self)),
        )

    @property
    def num_problems(self) -> int:
        """The number of problems, n."""
        return self.loss.shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.loss.shape[1] - 1

    def __iter__(self) -> Iterator[Seen]:
        """The steps 0..T-1, in order."""
        for step in range(self.num_steps):
            yield Seen(
                step,
                self.loss[:, step],
                self.log_grad_norm[:, step],
                self.increments[:, step],
                self.hazard_logits[:, step],
                self.hold_logits[:, step],
            )


class StopRule(ABC):
    """When to stop. Frozen settings; what it remembers of the problems travels as state.

    A decision at step t uses nothing later than the gradient at theta_t. What it decides about
    (taking the update g_t, or asking for the gradient at theta_{t+1}) is the caller's affair:
    see `haltwise.halting.accounts`.
    """

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        """The memory before the first step; tensors [num_problems, ...] in the dtype of `like`."""
        del num_problems, like
        return {}

    @abstractmethod
    def step(self, seen: Seen, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Which problems stop at this step, bool [B], and the memory for the next."""

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor) -> list[Self]:
        """Settings worth trying on traces that were set aside for tuning.

        Args:
            traces: The tuning problems.
            costs: excess + price * cost of ending at each step 0..T, shape [n, T+1].
        """
        raise NotImplementedError(f"{cls.__name__} has nothing to tune")


def decisions(rule: StopRule, traces: Traces) -> Tensor:
    """The step of the first stop of each problem, T where it never stops; int64 [n]."""
    memory = rule.init(traces.num_problems, traces.loss)
    stopped = torch.full(
        (traces.num_problems,), traces.num_steps, dtype=torch.int64, device=traces.loss.device
    )
    for seen in traces:
        stop, memory = rule.step(seen, memory)
        stopped = torch.where(stop & (stopped == traces.num_steps), seen.step, stopped)
    return stopped


def quantile_grid(values: Tensor, num: int) -> list[float]:
    """`num` levels that spread the finite `values` evenly, for thresholds to try."""
    flat = values[values.isfinite()].flatten().double()
    require(len(flat) > 0, "no finite value to choose thresholds from")
    flat = flat.sort().values
    ranks = torch.linspace(0, len(flat) - 1, num).round().long()
    return sorted(set(flat[ranks].tolist()))
