"""The posterior of a causal hazard (PonderNet, Banino et al. 2021, arXiv 2107.05407)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from haltwise.halting.posteriors.base import Posterior, check

__all__ = ["StickBreakingPosterior", "stick_breaking_log_prob"]


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
    """q(t) = rho_t prod_{k<t} (1 - rho_k), rho_T = 1 (PonderNet; what is left falls on T).

    See docs/theory.md, Eq. (hazard).

    Attributes:
        hazard_logits: log-odds of rho_0..rho_{T-1}, shape [B, T].

    Raises:
        InputError: A shape or a logit (NaN, +inf) is impossible.
    """

    hazard_logits: Tensor

    def __post_init__(self) -> None:
        check(self, "hazard_logits", self.hazard_logits, "[batch, T]")

    @property
    def horizon(self) -> int:
        return self.hazard_logits.shape[1]

    def log_prob(self) -> Tensor:
        return self.log_survival() + self.log_hazard()

    def log_survival(self) -> Tensor:
        return pad(logsigmoid(-self.hazard_logits).cumsum(1), (1, 0))

    def log_hazard(self) -> Tensor:
        return pad(logsigmoid(self.hazard_logits), (0, 1))
