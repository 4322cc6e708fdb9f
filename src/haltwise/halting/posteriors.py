"""Posteriors over the halting step t = 0..T behind one interface."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from haltwise._core.errors import InputError, require
from haltwise._core.tensors import probability
from haltwise.stop_rules.ponder import DEFAULT_EPSILON

__all__ = [
    "GravesPosterior",
    "Posterior",
    "SoftmaxPosterior",
    "StickBreakingPosterior",
    "stick_breaking_log_prob",
]


class Posterior(ABC):
    """q(t | x), the law of the halting step t = 0..T of a batch of B items."""

    is_causal: ClassVar[bool] = True
    """Whether q(t) depends on nothing that is known after step t, so that t can be drawn online."""

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Log q(t | x, T) for t = 0..T, shape [B, T+1]."""

    def ponder_steps(self) -> Tensor:
        """The number of steps that an objective takes the price of, shape [B]: the expected one."""
        prob = self.log_prob().exp()
        return (prob * torch.arange(prob.shape[1], dtype=prob.dtype, device=prob.device)).sum(1)


@final
@dataclass(frozen=True)
class SoftmaxPosterior(Posterior):
    """q(t | x, T) = softmax(s_0..s_T)_t, zero beyond T (thesis Eq. 10).

    See docs/theory.md, Eq. (softmax).

    Raises:
        InputError: A shape or a logit (NaN, +inf, a problem without a finite one) is impossible.
    """

    logits: Tensor
    """Cumulative logits s_0..s_T, shape [B, T+1]; -inf gives a step probability zero."""

    is_causal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check("logits", self.logits, "[batch, T+1]")
        empty = (self.logits == -torch.inf).all(1)
        if not torch.compiler.is_compiling() and empty.any():
            raise InputError(
                f"problem {empty.int().argmax().item()} has no finite logit; give it one"
            )

    def log_prob(self) -> Tensor:
        return self.logits.log_softmax(1)


def stick_breaking_log_prob(hazard_logits: Tensor) -> Tensor:
    """Log q(t) = log rho_t + sum_{k<t} log(1 - rho_k), t = 0..T, with rho_T = 1.

    Args:
        hazard_logits: log-odds of rho_0..rho_{T-1}, shape [..., T].

    Returns:
        Shape [..., T+1]; sums to one in probability.
    """
    log_survival = logsigmoid(-hazard_logits).cumsum(-1)  # log P(t > k)
    return pad(log_survival, (1, 0)) + pad(logsigmoid(hazard_logits), (0, 1))


@final
@dataclass(frozen=True)
class StickBreakingPosterior(Posterior):
    """q(t) = rho_t prod_{k<t} (1 - rho_k), rho_T = 1 (PonderNet, Banino et al. 2021).

    What is left falls on T. See docs/theory.md, Eq. (hazard).

    Raises:
        InputError: A shape or a logit (NaN, +inf) is impossible.
    """

    hazard_logits: Tensor
    """Log-odds of rho_0..rho_{T-1}, shape [B, T]."""

    def __post_init__(self) -> None:
        _check("hazard_logits", self.hazard_logits, "[batch, T]")

    def log_prob(self) -> Tensor:
        return stick_breaking_log_prob(self.hazard_logits)


@final
@dataclass(frozen=True)
class GravesPosterior(Posterior):
    """p_t = h_t for t < N and the remainder R at N, with h_t = sigmoid(logit_t).

    N is the first step with h_0 + .. + h_N >= 1 - epsilon, or T; R = 1 - sum_{t<N} h_t (Graves
    2016, arXiv 1603.08983, section 2). Graves counts his steps from 1; here t, and so N, counts the
    steps taken before halting; docs/theory.md, Eq. (act). The probabilities are differentiable
    except where N jumps; N itself has no gradient.

    Raises:
        InputError: A shape, a logit (NaN, +inf) or epsilon is impossible.
    """

    halting_logits: Tensor
    """Log-odds of h_0..h_{T-1}, shape [B, T]."""
    epsilon: float = DEFAULT_EPSILON
    """In (0, 1): what is left of the unit to let a single step halt."""

    def __post_init__(self) -> None:
        _check("halting_logits", self.halting_logits, "[batch, T]")
        require(0 < self.epsilon < 1, f"epsilon must lie in (0, 1), got {self.epsilon}")

    def halting_step(self) -> Tensor:
        """N, int64 [B]."""
        short = probability(self.halting_logits.detach()).cumsum(1) < 1 - self.epsilon
        return short.sum(1)

    def remainder(self) -> Tensor:
        """R, shape [B]; above epsilon."""
        before = pad(probability(self.halting_logits).cumsum(1), (1, 0))  # sum_{k<t} h_k
        return 1 - before.gather(1, self.halting_step().unsqueeze(1)).squeeze(1)

    def ponder_steps(self) -> Tensor:
        """N + R, Graves' ponder cost; the gradient is that of R."""
        return self.halting_step() + self.remainder()

    def log_prob(self) -> Tensor:
        last = self.halting_step().unsqueeze(1)
        log_prob = pad(logsigmoid(self.halting_logits), (0, 1))
        steps = torch.arange(log_prob.shape[1], device=last.device)
        log_prob = torch.where(steps == last, self.remainder().log().unsqueeze(1), log_prob)
        return torch.where(steps <= last, log_prob, -torch.inf)


def _check(name: str, logits: Tensor, shape: str) -> None:
    """Raise unless logits have the shape, [batch, T] or [batch, T+1], and are finite or -inf."""
    require(
        logits.ndim == 2 and logits.shape[1] >= (shape == "[batch, T+1]"),
        f"{name} must have the shape {shape}, got {tuple(logits.shape)}",
    )
    if torch.compiler.is_compiling():  # what is traced has no values yet
        return
    wrong = ~(logits < torch.inf)
    if wrong.any():
        problem, step = wrong.nonzero()[0].tolist()
        raise InputError(
            f"{name} must be numbers or -inf, got {logits[problem, step].item()} at problem "
            f"{problem}, step {step}; leave out problems that diverged"
        )
