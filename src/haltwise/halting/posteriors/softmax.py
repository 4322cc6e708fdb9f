"""The thesis' posterior, given a horizon that grows as steps are taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.halting.posteriors.base import Posterior, check

__all__ = ["SoftmaxPosterior"]


@final
@dataclass(frozen=True)
class SoftmaxPosterior(Posterior):
    """q(t | x, T) = softmax(s_0..s_T)_t, zero beyond T (thesis Eq. 10).

    See docs/theory.md, Eq. (softmax).

    Attributes:
        logits: Cumulative logits s_0..s_T, shape [B, T+1]; -inf gives a step probability zero.

    Raises:
        InputError: A shape or a logit (NaN, +inf, a problem without a finite one) is impossible.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        check(self, "logits", self.logits, "[batch, T+1]")
        empty = (self.logits == -torch.inf).all(1)
        if empty.any():
            raise InputError(
                f"problem {empty.int().argmax().item()} has no finite logit; give it one"
            )

    @classmethod
    def stream(cls, increments: Iterator[Tensor], like: Tensor) -> Iterator[Self]:
        """q(. | x, T = t) at t = 0, 1, ... as increments delta_0, delta_1, ... come in.

        Args:
            increments: Each of shape [B], for instance a column of the output
                `increments`.
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
        return self.logits.shape[1] - 1

    def log_prob(self) -> Tensor:
        return self.logits.log_softmax(1)
