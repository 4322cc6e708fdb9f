"""Adaptive computation time (Graves 2016, arXiv 1603.08983, section 2)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from haltwise._core.errors import require
from haltwise.halting.posteriors.base import Posterior, check
from haltwise.stop_rules.ponder import DEFAULT_EPSILON

__all__ = ["GravesPosterior"]


@final
@dataclass(frozen=True)
class GravesPosterior(Posterior):
    """p_t = h_t for t < N and the remainder R at N, with h_t = sigmoid(logit_t).

    N is the first step with h_0 + .. + h_N >= 1 - epsilon, or T; R = 1 - sum_{t<N} h_t. Graves
    counts his steps from 1; here t, and so N, counts the steps taken before halting;
    docs/theory.md, Eq. (act).

    The probabilities are differentiable except where N jumps; N itself has no gradient.

    Attributes:
        halting_logits: log-odds of h_0..h_{T-1}, shape [B, T].
        epsilon: In (0, 1): what is left of the unit to let a single step halt.

    Raises:
        InputError: A shape, a logit (NaN, +inf) or epsilon is impossible.
    """

    halting_logits: Tensor
    epsilon: float = DEFAULT_EPSILON

    def __post_init__(self) -> None:
        check(self, "halting_logits", self.halting_logits, "[batch, T]")
        require(0 < self.epsilon < 1, f"epsilon must lie in (0, 1), got {self.epsilon}")

    @property
    def horizon(self) -> int:
        return self.halting_logits.shape[1]

    def halting_step(self) -> Tensor:
        """N, int64 [B]."""
        short = self.halting_logits.detach().sigmoid().cumsum(1) < 1 - self.epsilon
        return short.sum(1)

    def remainder(self) -> Tensor:
        """R, shape [B]; above epsilon."""
        before = pad(self.halting_logits.sigmoid().cumsum(1), (1, 0))  # sum_{k<t} h_k
        return 1 - before.gather(1, self.halting_step().unsqueeze(1)).squeeze(1)

    def ponder_cost(self) -> Tensor:
        """N + R, shape [B]; its gradient is that of R."""
        return self.halting_step() + self.remainder()

    def log_prob(self) -> Tensor:
        last = self.halting_step().unsqueeze(1)
        steps = torch.arange(self.horizon + 1, device=last.device)
        log_prob = pad(logsigmoid(self.halting_logits), (0, 1))
        log_prob = torch.where(steps == last, self.remainder().log().unsqueeze(1), log_prob)
        return torch.where(steps <= last, log_prob, -torch.inf)
