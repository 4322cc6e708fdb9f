"""Stop at random, with the learned probability (PonderNet's rule)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from haltwise.processes.observation import StepObservation
from haltwise.stop_rules.base import DecisionTime, Memory, StopRule

__all__ = ["Sampling"]


@final
@dataclass(frozen=True)
class Sampling(StopRule):
    """Stop at step t with probability rho_t, so that stops are drawn from q (Banino et al. 2021).

    Instead of a coin per step, each problem draws one u ~ U(0, 1) at the start and stops at the
    first t with prod_{k<=t} (1 - rho_k) <= u. As P(u >= S_t) = 1 - S_t is the distribution
    function of q, the law of the stop is the same, and it does not depend on which problems have
    left the batch. The same seed deals the same u to the problems of every batch, by position.

    Args:
        seed: Of the draws.
        time: Which of the two hazards is read.
    """

    seed: int = 0
    time: DecisionTime = DecisionTime.AFTER_GRADIENT

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"it was drawn with the learned probability (seed {self.seed})",)

    def init(self, num_items: int, like: Tensor) -> Memory:
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(num_items, generator=generator, dtype=like.dtype)
        return {
            "log_uniform": uniform.log().to(like.device),
            "log_survival": like.new_zeros(num_items),
        }

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        logits = observation.known("hazard_logits")[:, self.time]
        log_survival = memory["log_survival"] + logsigmoid(-logits)
        return log_survival <= memory["log_uniform"], {**memory, "log_survival": log_survival}


STOP_RULES = {"sampling": Sampling}
