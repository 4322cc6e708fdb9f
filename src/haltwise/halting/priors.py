"""Priors over the halting step and over the horizon (thesis Eq. 12-14, mended).

With continuation probability nu and r = sqrt(nu),

    p(t)     = (1 - nu) nu^t
    p(T)     = r^T (1 - r^(T+1)) (1 - nu)
    p(t | T) = (1 - r) r^t / (1 - r^(T+1)),   0 <= t <= T

and sum_{T >= t} p(t|T) p(T) = (1 - r)(1 - nu) r^t sum_{T >= t} r^T = (1 - nu) r^(2t) = p(t).
The thesis prints p(t|T) without the factor r^t (Eq. 14); then it does not sum to one. The proof is
in docs/theory.md, Eqs. (prior), (horizon), (conditional) and (marginal).
"""

from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all

from haltwise._core.errors import require

__all__ = ["HorizonPrior", "TruncatedGeometric"]


def _checked_continuation(continuation: Tensor) -> None:
    inside = (continuation > 0) & (continuation < 1)
    require(
        bool(inside.all()),
        f"continuation must lie strictly between 0 and 1, got {continuation[~inside][:1].tolist()}",
    )


def _as_floating(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(float(value))


def _mean_part(x: Tensor) -> Tensor:
    """1 / (exp(x) - 1) - 1/x for x > 0, by its series where the two would cancel."""
    small = x.clamp_max(0.3)
    square = small.square()
    series = -0.5 + small / 12 * (
        1 - square / 60 * (1 - square / 42 * (1 - square / 40 * (1 - 5 * square / 198)))
    )
    large = x.clamp_min(0.3)
    return torch.where(x < 0.3, series, 1 / torch.expm1(large) - 1 / large)


def _variance_part(x: Tensor) -> Tensor:
    """exp(-x) / (1 - exp(-x))^2 - 1/x^2 = -(the derivative of `_mean_part`), likewise."""
    square = x.clamp_max(0.3).square()
    series = -1 / 12 + square / 240 * (
        1 - 5 * square / 126 * (1 - 7 * square / 200 * (1 - square * 5 / 154))
    )
    large = x.clamp_min(0.3)
    exact = torch.exp(-large) / torch.expm1(-large).square() - large.square().reciprocal()
    return torch.where(x < 0.3, series, exact)


@final
class HorizonPrior(Distribution):
    """p(T), the law of the horizon under which p(t) is geometric (thesis Eq. 12-14).

    See docs/theory.md, Eq. (horizon).

    p(T) = r^T (1 - r^(T+1)) (1 - nu), T = 0, 1, ...; it is the law of the sum of two independent
    geometric variables with ratios r and nu, which is how samples are drawn.

    Args:
        continuation: nu in (0, 1), any batch shape.

    Raises:
        InputError: nu lies outside (0, 1).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "continuation": constraints.unit_interval
    }
    support = constraints.nonnegative_integer

    def __init__(self, continuation: Tensor | float, validate_args: bool | None = None) -> None:
        self.continuation = _as_floating(continuation)
        _checked_continuation(self.continuation)
        self._log_ratio = 0.5 * self.continuation.log()  # log r
        super().__init__(self.continuation.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HorizonPrior":
        return HorizonPrior(self.continuation.expand(batch_shape), self._validate_args)

    @property
    def mean(self) -> Tensor:
        """E[T] = r / (1 - r) + nu / (1 - nu)."""
        ratio = self._log_ratio.exp()
        return ratio / (1 - ratio) + self.continuation / (1 - self.continuation)

    @property
    def variance(self) -> Tensor:
        """The sum of the variances of the two geometric parts, r/(1-r)^2 + nu/(1-nu)^2."""
        ratio, nu = self._log_ratio.exp(), self.continuation
        return ratio / (1 - ratio).square() + nu / (1 - nu).square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(T) for integers T >= 0, broadcast against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.continuation.dtype)
        survives = torch.log(-torch.expm1((value + 1) * self._log_ratio))
        return value * self._log_ratio + survives + torch.log1p(-self.continuation)

    def log_survival(self, value: Tensor) -> Tensor:
        """Log P(T >= n) = n log r + log(1 + r - r^(n+1)); docs/theory.md, Eq. (tail)."""
        value = value.to(self.continuation.dtype)
        ratio = self._log_ratio.exp()
        return value * self._log_ratio + torch.log1p(
            ratio - torch.exp((value + 1) * self._log_ratio)
        )

    def weights(self, max_horizon: int) -> Tensor:
        """p(0), ..., p(T_max - 1), P(T >= T_max): horizon weights, batch shape + [T_max + 1]."""
        steps = torch.arange(max_horizon + 1, dtype=self.continuation.dtype)
        steps = steps.to(self.continuation.device)
        single = HorizonPrior(self.continuation.unsqueeze(-1), validate_args=False)
        log_weights = single.log_prob(steps)
        tail = single.log_survival(steps[-1:])
        return torch.cat((log_weights[..., :-1], tail), -1).exp()

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """T, shape sample_shape + batch shape; torch's global generator unless one is given."""
        shape = self._extended_shape(sample_shape)
        total = torch.zeros(shape, dtype=self.continuation.dtype, device=self.continuation.device)
        for log_ratio in (self._log_ratio, 2 * self._log_ratio):
            uniform = torch.rand(shape, generator=generator, dtype=total.dtype, device=total.device)
            total += torch.floor(torch.log1p(-uniform) / log_ratio)
        return total


@final
class TruncatedGeometric(Distribution):
    """p(t | T) = (1 - r) r^t / (1 - r^(T+1)) on 0..T, r = sqrt(nu) (thesis Eq. 14, mended).

    See docs/theory.md, Eq. (conditional).

    Args:
        continuation: nu in (0, 1), any batch shape. The per-step ratio is sqrt(nu).
        horizon: T >= 0, broadcast against `continuation`.

    Raises:
        InputError: nu lies outside (0, 1), or T below 0.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "continuation": constraints.unit_interval,
        "horizon": constraints.nonnegative_integer,
    }

    def __init__(
        self,
        continuation: Tensor | float,
        horizon: Tensor | int,
        validate_args: bool | None = None,
    ) -> None:
        continuation = _as_floating(continuation)
        self.continuation, self.horizon = broadcast_all(continuation, horizon)
        self.horizon = self.horizon.to(self.continuation.dtype)
        _checked_continuation(self.continuation)
        require(bool((self.horizon >= 0).all()), f"horizon must be at least 0, got {horizon}")
        self._log_ratio = 0.5 * self.continuation.log()
        super().__init__(self.continuation.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The integers 0..T."""
        return constraints.integer_interval(0, self.horizon)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TruncatedGeometric":
        return TruncatedGeometric(
            self.continuation.expand(batch_shape),
            self.horizon.expand(batch_shape),
            self._validate_args,
        )

    @property
    def mean(self) -> Tensor:
        """E[t] = r / (1 - r) - (T + 1) r^(T+1) / (1 - r^(T+1))."""
        decay, count = -self._log_ratio, self.horizon + 1
        return _mean_part(decay) - count * _mean_part(count * decay)

    @property
    def variance(self) -> Tensor:
        """Var[t] = r / (1 - r)^2 - (T + 1)^2 r^(T+1) / (1 - r^(T+1))^2."""
        decay, count = -self._log_ratio, self.horizon + 1
        return _variance_part(decay) - count.square() * _variance_part(count * decay)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(t|T) for integers 0 <= t <= T; -inf beyond T if validation is off."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.continuation.dtype)
        inside = (value >= 0) & (value <= self.horizon)
        return torch.where(inside, value * self._log_ratio + self._log_first(), -torch.inf)

    def _log_first(self) -> Tensor:
        """Log p(0|T) = log(1 - r) - log(1 - r^(T+1))."""
        return torch.log(-torch.expm1(self._log_ratio)) - torch.log(
            -torch.expm1((self.horizon + 1) * self._log_ratio)
        )

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Steps t by inversion, shape sample_shape + batch shape."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(
            shape,
            generator=generator,
            dtype=self.continuation.dtype,
            device=self.continuation.device,
        )
        # P(t' <= t) = (1 - r^(t+1)) / (1 - r^(T+1))
        mass = -torch.expm1((self.horizon + 1) * self._log_ratio)
        value = torch.floor(torch.log1p(-uniform * mass) / self._log_ratio)
        return torch.minimum(value, self.horizon)


@register_kl(TruncatedGeometric, TruncatedGeometric)  # type: ignore[untyped-decorator]
def _kl_truncated_truncated(p: TruncatedGeometric, q: TruncatedGeometric) -> Tensor:
    """E_p[t] (log r_p - log r_q) + log p(0) - log q(0), infinite if p reaches beyond q."""
    finite = p.mean * (p._log_ratio - q._log_ratio) + p._log_first() - q._log_first()
    return torch.where(p.horizon <= q.horizon, finite, torch.inf)


@register_kl(HorizonPrior, HorizonPrior)  # type: ignore[untyped-decorator]
def _kl_horizon_horizon(p: HorizonPrior, q: HorizonPrior) -> Tensor:
    """Summed until what is left of p is below rounding; there is no closed form."""
    eps = torch.finfo(p.continuation.dtype).eps
    longest = float((torch.log(torch.tensor(eps)) / p._log_ratio).max()) * 1.5
    shape = (-1,) + (1,) * len(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
    steps = torch.arange(int(longest) + 2, dtype=p.continuation.dtype).view(shape)
    steps = steps.to(p.continuation.device)
    log_p = p.log_prob(steps)
    return (log_p.exp() * (log_p - q.log_prob(steps))).sum(0)
