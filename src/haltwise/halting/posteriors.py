"""The posterior over the halting step, given a horizon that grows as steps are taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise._errors import require
from haltwise.halting.priors import TruncatedGeometric

__all__ = ["SoftmaxPosterior"]


@final
@dataclass(frozen=True)
class SoftmaxPosterior:
    """q(t | x, T) = softmax(s_0..s_T)_t, zero beyond T (thesis Eq. 10).

    Attributes:
        logits: Cumulative logits s_0..s_T, shape [B, T+1]. Steps beyond a problem's own horizon
            may be masked by -inf, so horizons of a batch can differ.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        require(
            self.logits.ndim == 2 and self.logits.shape[1] >= 1,
            f"logits must have the shape [batch, T+1], got {tuple(self.logits.shape)}",
        )

    @classmethod
    def stream(cls, increments: Iterator[Tensor], like: Tensor) -> Iterator[Self]:
        """q(. | x, T = t) at t = 0, 1, ... as increments delta_0, delta_1, ... come in.

        Args:
            increments: Each of shape [B], for instance `HaltingOutput.increments[:, AFTER]`.
            like: A tensor [B] of the dtype and device wanted.

        Yields:
            The posterior with horizon 0, then one more after every increment (Eq. 9).
        """
        logits = torch.zeros_like(like).unsqueeze(1)
        yield cls(logits)
        for increment in increments:
            logits = torch.cat((logits, logits[:, -1:] + increment.unsqueeze(1)), dim=1)
            yield cls(logits)

    @property
    def horizon(self) -> int:
        """T."""
        return self.logits.shape[1] - 1

    def log_prob(self) -> Tensor:
        """Log q(t | x, T) for t = 0..T, shape [B, T+1]."""
        return self.logits.log_softmax(1)

    def log_survival(self) -> Tensor:
        """Log probability of halting at t or later, shape [B, T+1]."""
        return self.log_prob().flip(1).logcumsumexp(1).flip(1)

    def log_hazard(self) -> Tensor:
        """Log probability of halting at t, given that t is reached, shape [B, T+1]."""
        return self.log_prob() - self.log_survival()

    def mode(self) -> Tensor:
        """The most probable halting step, int64 [B]."""
        return self.logits.argmax(1)

    def kl(self, continuation: Tensor | float) -> Tensor:
        """KL(q(. | x, T) || p(. | T)) to the truncated geometric prior, in nats, shape [B].

        Args:
            continuation: nu of the prior, a number or shape [B].
        """
        steps = torch.arange(self.horizon + 1, dtype=self.logits.dtype, device=self.logits.device)
        nu = torch.as_tensor(continuation, dtype=self.logits.dtype, device=self.logits.device)
        log_prior = TruncatedGeometric(nu.reshape(-1, 1), self.horizon).log_prob(steps)
        log_prob = self.log_prob()
        finite = torch.where(log_prob == -torch.inf, 0, log_prob)  # 0 log 0 = 0
        return (log_prob.exp() * (finite - log_prior)).sum(1)
