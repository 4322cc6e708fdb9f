"""The contract of a posterior over the halting step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise.halting.priors import TruncatedGeometric

__all__ = ["Posterior", "check"]


class Posterior(ABC):
    """q(t | x), the law of the halting step t = 0..T of a batch of B items."""

    @property
    @abstractmethod
    def horizon(self) -> int:
        """T."""

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Log q(t | x, T) for t = 0..T, shape [B, T+1]."""

    def log_survival(self) -> Tensor:
        """Log probability of halting at t or later, shape [B, T+1]."""
        log_prob = self.log_prob()
        # Finite in between: the gradient of logcumsumexp is NaN where it meets -inf.
        lowest = torch.finfo(log_prob.dtype).min
        survival = log_prob.clamp_min(lowest).flip(1).logcumsumexp(1).flip(1)
        return torch.where(survival == lowest, -torch.inf, survival)

    def log_hazard(self) -> Tensor:
        """Log probability of halting at t, given that t is reached, shape [B, T+1].

        -inf where t is never reached.
        """
        log_survival = self.log_survival()
        hazard = self.log_prob() - log_survival
        return torch.where(log_survival == -torch.inf, -torch.inf, hazard)

    def mode(self) -> Tensor:
        """The most probable halting step, the first of several, int64 [B]."""
        return self.log_prob().argmax(1)

    def kl(self, continuation: Tensor | float) -> Tensor:
        """KL(q(. | x, T) || p(. | T)) to the truncated geometric prior, in nats, shape [B].

        Args:
            continuation: nu of the prior, a number or shape [B].
        """
        log_prob = self.log_prob()
        steps = torch.arange(self.horizon + 1, dtype=log_prob.dtype, device=log_prob.device)
        nu = torch.as_tensor(continuation, dtype=log_prob.dtype, device=log_prob.device)
        require(
            nu.shape in ((), log_prob.shape[:1]),
            f"continuation must be a number or of shape [{len(log_prob)}], got {list(nu.shape)}",
        )
        prior = TruncatedGeometric(nu.reshape(-1, 1), self.horizon, validate_args=False)
        ratio = torch.where(log_prob == -torch.inf, 0, log_prob - prior.log_prob(steps))
        return (log_prob.exp() * ratio).sum(1)  # 0 log 0 = 0


def check(posterior: Posterior, name: str, logits: Tensor, shape: str) -> None:
    """Raise `InputError` unless logits are possible.

    Args:
        posterior: Whose logits they are.
        name: What the logits are called.
        logits: To be [B, T] or [B, T+1], each finite or -inf.
        shape: The shape in words, for the message.
    """
    require(
        logits.ndim == 2 and posterior.horizon >= 0,
        f"{name} must have the shape {shape}, got {tuple(logits.shape)}",
    )
    wrong = ~(logits < torch.inf)
    if wrong.any():
        problem, step = wrong.nonzero()[0].tolist()
        raise InputError(
            f"{name} must be numbers or -inf, got {logits[problem, step].item()} at problem "
            f"{problem}, step {step}; leave out problems that diverged"
        )
