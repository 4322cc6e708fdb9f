"""Priors over the halting step and over the horizon (thesis Eq. 12-14, mended).

With continuation probability nu and r = sqrt(nu),

    p(t)     = (1 - nu) nu^t
    p(T)     = r^T (1 - r^(T+1)) (1 - nu)
    p(t | T) = (1 - r) r^t / (1 - r^(T+1)),   0 <= t <= T

and sum_{T >= t} p(t|T) p(T) = (1 - r)(1 - nu) r^t sum_{T >= t} r^T = (1 - nu) r^(2t) = p(t).
The thesis prints p(t|T) without the factor r^t (Eq. 14); then it does not sum to one. The proof is
in docs/theory.md, Eqs. (prior), (horizon), (conditional) and (marginal).
"""

from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require

__all__ = ["HorizonPrior"]


@final
class HorizonPrior:
    """p(T), the law of the horizon under which p(t) is geometric (thesis Eq. 12-14).

    See docs/theory.md, Eq. (horizon).

    p(T) = r^T (1 - r^(T+1)) (1 - nu), T = 0, 1, ...; it is the law of the sum of two independent
    geometric variables with ratios r and nu, which is how samples are drawn.

    Args:
        continuation: nu in (0, 1), any batch shape.

    Raises:
        InputError: nu lies outside (0, 1).
    """

    def __init__(self, continuation: Tensor) -> None:
        outside = continuation[~((continuation > 0) & (continuation < 1))]
        require(
            outside.numel() == 0,
            f"continuation must lie strictly between 0 and 1, got {outside[:1].tolist()}",
        )
        self.continuation = continuation
        self._log_ratio = 0.5 * continuation.log()  # log r

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(T) for integers T >= 0, broadcast against the batch shape."""
        survives = torch.log(-torch.expm1((value + 1) * self._log_ratio))
        return value * self._log_ratio + survives + torch.log1p(-self.continuation)

    def log_survival(self, value: Tensor) -> Tensor:
        """Log P(T >= n) = n log r + log(1 + r - r^(n+1)); docs/theory.md, Eq. (tail)."""
        ratio = self._log_ratio.exp()
        return value * self._log_ratio + torch.log1p(
            ratio - torch.exp((value + 1) * self._log_ratio)
        )

    def weights(self, max_horizon: int) -> Tensor:
        """p(0), ..., p(T_max - 1), P(T >= T_max): horizon weights, batch shape + [T_max + 1]."""
        nu = self.continuation.unsqueeze(-1)
        single = HorizonPrior(nu)
        steps = torch.arange(max_horizon + 1, dtype=nu.dtype, device=nu.device)
        tail = single.log_survival(steps[-1:])
        return torch.cat((single.log_prob(steps)[..., :-1], tail), -1).exp()

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """T, of the batch shape."""
        total = torch.zeros_like(self.continuation)
        for log_ratio in (self._log_ratio, 2 * self._log_ratio):
            uniform = torch.rand(
                total.shape, generator=generator, dtype=total.dtype, device=generator.device
            )
            total += torch.floor(torch.log1p(-uniform.to(total.device)) / log_ratio)
        return total
