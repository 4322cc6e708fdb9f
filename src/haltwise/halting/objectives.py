"""Objectives of training: functions of losses and logits.

Throughout, losses f_0..f_T have the shape [B, T+1], the price c and the temperature tau [B], and
hazard logits, the log-odds of rho_0..rho_{T-1}, [B, T]. An objective has the shape [B]; all but
the bound are to be minimised.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise.halting.posteriors import GravesPosterior, stick_breaking_log_prob
from haltwise.halting.priors import HorizonPrior

__all__ = [
    "DEFAULT_CONTINUATION",
    "LOSSES_OF_STEPS",
    "continuation_value",
    "cumulative_logits",
    "distillation",
    "free_energy",
    "halting_bound",
    "optimal_free_energy",
    "ponder_objective",
    "stick_breaking_log_prob",
    "sum_of_losses",
]

_FARSIGHT = 10.0

DEFAULT_CONTINUATION = 0.9
"""Horizon prior when none is given: E[T] = 27.5, whatever the price (a choice, see `docs`)."""


def sum_of_losses(losses: Tensor) -> Tensor:
    """sum_{t=1..T} f(theta_t), the LSTM optimizer's loss (L2L; thesis Eq. 1).

    See docs/theory.md, Eq. (sum).
    """
    return losses[:, 1:].sum(1)


def _mean_in_prices(losses: Tensor, price: float) -> Tensor:
    return sum_of_losses(losses) / ((losses.shape[1] - 1) * price)


def _mean_of_logs(losses: Tensor, price: float) -> Tensor:
    return sum_of_losses((losses / price).clamp_min(0).log1p()) / (losses.shape[1] - 1)


LOSSES_OF_STEPS: Mapping[str, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {"mean": _mean_in_prices, "log": _mean_of_logs}
)
"""How losses [B, T+1] of steps 1..T count at a price, shape [B], by name."""


def cumulative_logits(increments: Tensor) -> Tensor:
    """s_0 = 0, s_{t+1} = s_t + delta_t (thesis Eq. 9): shape [..., T] to [..., T+1].

    See docs/theory.md, Eq. (logits).
    """
    return torch.nn.functional.pad(increments.cumsum(-1), (1, 0))


def free_energy(losses: Tensor, log_prob: Tensor, *, price: Tensor, temperature: Tensor) -> Tensor:
    """sum_t q(t) (f_t + c t + tau log q(t)), least at q(t) proportional to exp(-(f_t + c t)/tau).

    See docs/theory.md, Eqs. (free-energy) and (target).
    Up to a constant it is minus the thesis' bound (Eq. 4) at one horizon with the prior
    p(t) proportional to exp(-c t / tau). PonderNet's E_q[f] + beta KL(q || geometric) is the
    same at tau = beta, c = -beta log(1 - lambda_p).

    Args:
        losses: Whatever stands where q is zero is not read.
        log_prob: log q(0)..log q(T), shape [B, T+1].
        price: c.
        temperature: tau.

    Raises:
        InputError: Losses and posterior differ in shape.
    """
    _check_losses(losses, log_prob)
    log_q = torch.where(log_prob == -torch.inf, 0, log_prob)  # 0 log 0 = 0
    energy = _costs(losses, price) + temperature.unsqueeze(1) * log_q
    return _expectation(energy, log_prob)


def optimal_free_energy(losses: Tensor, *, price: Tensor, temperature: Tensor) -> Tensor:
    """The least free energy of any posterior, -tau log sum_t exp(-(f_t + c t)/tau).

    A soft minimum: its gradient weighs the losses by the optimum Q(t), see `distillation`.
    See docs/theory.md, Eq. (target).
    """
    scaled = -_costs(losses, price) / temperature.unsqueeze(1)
    return -temperature * scaled.logsumexp(1)


def distillation(
    losses: Tensor, hazard_logits: Tensor, *, price: Tensor, temperature: Tensor
) -> Tensor:
    """Cross-entropy to the free energy's optimum Q(t), which is known after an unroll.

    With Q(t) proportional to exp(-(f_t + c t)/tau) and S_t = sum_{s>=t} Q(s), the cross-entropy
    -sum_t Q(t) log q(t) of the hazards rho is -sum_{t<T} [Q(t) log rho_t + S_{t+1} log(1 - rho_t)].
    Losses are data, and it is in nats. See docs/theory.md, Eq. (distillation).
    """
    optimum = (-_costs(losses.detach(), price) / temperature.unsqueeze(1)).softmax(1)
    return -(optimum * stick_breaking_log_prob(hazard_logits)).sum(1)


def continuation_value(losses: Tensor, hazard_logits: Tensor, *, price: Tensor) -> Tensor:
    """Squared error of a forecast of what going on costs more than stopping, in prices.

    rho's log-odds v_t are read as (what the steps from t on will cost if the policy is followed
    after t + 1, less f_t + c t) / c. The policy stops where v_t >= 0, so costs are collected
    backwards from the horizon on the recorded trajectory (least-squares Monte Carlo, Longstaff &
    Schwartz 2001, with the policy iterated as the forecast learns). Losses are data. The mean over
    steps counts errors beyond a price linearly (Huber), and targets are held within `_FARSIGHT`
    prices: beyond, the decision is clear. No error where there is nothing to decide. See
    docs/theory.md, Eq. (value).
    """
    if hazard_logits.shape[1] == 0:  # as before the gradients of runs of one step
        return hazard_logits.sum(1)
    costs = losses.detach() / price.unsqueeze(1) + _steps(losses)
    later = costs[:, -1]
    targets = []
    for step in reversed(range(hazard_logits.shape[1])):
        targets.append(later - costs[:, step])
        later = torch.where(hazard_logits[:, step].detach() >= 0, costs[:, step], later)
    target = torch.stack(targets[::-1], 1).clamp(-_FARSIGHT, _FARSIGHT)
    error = torch.nn.functional.huber_loss(hazard_logits, target, reduction="none")
    return error.mean(1)


def ponder_objective(
    losses: Tensor, posterior: GravesPosterior, *, price: float | Tensor
) -> Tensor:
    """sum_t p_t f_t + c (N + R): expected loss and ponder cost (Graves 2016).

    Its gradient leaves out that of N, which has none. See docs/theory.md, Eq. (ponder).

    Args:
        losses: Whatever stands where p is zero is not read.
        posterior: p, with N and R.
        price: c, Graves' time penalty, a number or shape [B].

    Raises:
        InputError: Losses and posterior differ in shape.
    """
    log_prob = posterior.log_prob()
    _check_losses(losses, log_prob)
    return _expectation(losses, log_prob) + price * posterior.ponder_steps()


def _check_losses(losses: Tensor, values: Tensor) -> None:
    require(
        losses.ndim == 2 and losses.shape[1] > 0 and losses.shape == values.shape,
        "losses and logits or log-probabilities must share one shape [batch, T+1], "
        f"got {tuple(losses.shape)} and {tuple(values.shape)}",
    )


def _steps(losses: Tensor) -> Tensor:
    """0..T, shape [T+1]."""
    return torch.arange(losses.shape[1], dtype=losses.dtype, device=losses.device)


def _costs(losses: Tensor, price: Tensor) -> Tensor:
    """f_t + c t, shape [B, T+1]."""
    return losses + price.unsqueeze(1) * _steps(losses)


def _expectation(values: Tensor, log_prob: Tensor) -> Tensor:
    """sum_t q(t) v_t; 0 for a step of probability zero, whatever its value."""
    return (log_prob.exp() * torch.where(log_prob == -torch.inf, 0, values)).sum(1)


def halting_bound(
    losses: Tensor,
    logits: Tensor,
    *,
    price: float | Tensor,
    temperature: float | Tensor = 1.0,
    horizon_weights: Tensor | None = None,
) -> Tensor:
    r"""The thesis' objective (Eq. 8 and 17) with its expectation over horizons taken exactly.

    One unroll to T_max yields q(.|x, T) = softmax(s_0..s_T) for every horizon T at once:

        bound = sum_T pi_T [ sum_{t<=T} q(t|x,T) (log p(x|t) - tau log q(t|x,T) / p(t|T)) ]

    with log p(x|t) = -losses_t and p(t|T) truncated geometric of ratio r = exp(-price / tau). At
    tau = 1 this is Eq. 8 with nu = exp(-2 price). The mean under q(.|x,T) and its entropy are
    carried from T to T + 1, so logits may differ by any amount without overflow or cancellation.
    See docs/theory.md, Eqs. (bound) and (running).

    Args:
        losses: Negative log-likelihoods at theta_0..theta_T.
        logits: **Cumulative** logits s_0..s_T, shape [B, T+1].
        price: c > 0, cost of a step in units of the loss; a number or shape [B].
        temperature: tau > 0, in units of the loss; a number or shape [B].
        horizon_weights: pi_0..pi_T >= 0, shape [T+1] or [B, T+1], sum one. By default the horizon
            prior with continuation .9, its tail on T, independent of the price.

    Returns:
        The bound of each problem, to be **maximised**; not finite, and the others untouched, where
        a problem's logits or losses are not.

    Raises:
        InputError: Shapes do not fit, a price or temperature is not positive, or the weights are
            no distribution.

    Examples:
        >>> losses = torch.tensor([[2.0, 1.0, 1.0]])
        >>> halting_bound(losses, torch.zeros(1, 3), price=0.1).shape
        torch.Size([1])
    """
    _check_losses(losses, logits)
    price = _positive("price", price, losses)
    temperature = _positive("temperature", temperature, losses)
    num_steps = losses.shape[1]
    if horizon_weights is None:
        horizon_weights = HorizonPrior(losses.new_tensor(DEFAULT_CONTINUATION)).weights(
            num_steps - 1
        )
    require(
        horizon_weights.shape in ((num_steps,), losses.shape),
        f"horizon_weights must have the shape [{num_steps}] or {list(losses.shape)}, "
        f"got {list(horizon_weights.shape)}",
    )
    require(
        bool((horizon_weights >= 0).all())
        and bool(((horizon_weights.sum(-1) - 1).abs() < 1e-3).all()),
        "horizon_weights must be at least 0 and sum to one over the horizons",
    )

    steps = _steps(losses)
    log_ratio = -price / temperature
    # What stopping at t is worth, before q's entropy and p's normalizer, which depend on T.
    worth = -losses + temperature * (torch.log(-torch.expm1(log_ratio)) + steps * log_ratio)
    # Step T joins the steps before it with odds exp(s_T - A_{T-1}): the entropy of q(.|x,T) is
    # the joining's own plus that of the steps before. No difference of large logits is left over.
    log_total = torch.logcumsumexp(logits, dim=1)  # A_T
    log_odds = logits[:, 1:] - log_total[:, :-1]
    weight = torch.sigmoid(log_odds)  # w_T = q(T|x,T)
    softplus = torch.nn.functional.softplus
    entropy = weight * softplus(-log_odds) + torch.sigmoid(-log_odds) * softplus(log_odds)
    entropy = temperature * entropy
    value = worth[:, 0]
    values = [value]
    for step in range(1, num_steps):
        value = torch.lerp(value, worth[:, step], weight[:, step - 1]) + entropy[:, step - 1]
        values.append(value)
    log_mass = torch.log(-torch.expm1((steps + 1) * log_ratio))  # log(1 - r^(T+1))
    bounds = torch.stack(values, dim=1) - temperature * log_mass
    return (horizon_weights * bounds).sum(1)


def _positive(name: str, value: float | Tensor, losses: Tensor) -> Tensor:
    """A number or one per problem, shape [1, 1] or [B, 1]."""
    given = torch.as_tensor(value, dtype=losses.dtype, device=losses.device)
    require(
        given.shape in ((), losses.shape[:1]),
        f"{name} must be a number or of shape [{len(losses)}], got {tuple(given.shape)}",
    )
    if not (given > 0).all():
        raise InputError(f"{name} must be above 0, got {given.min():g}")
    return given.reshape(-1, 1)
