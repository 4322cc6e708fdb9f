"""P-values of "the mean loss is above the level", exact for any law of the losses."""

import math

import torch
from torch import Tensor

__all__ = ["betting_growth", "betting_p_values", "binomial_p_values", "fewest_problems"]

_RATIO = 4.0  # between neighbouring bets: 2 certifies the same, at twice the price in time


def betting_p_values(
    losses: Tensor, level: float, confidence: float, num_planned: int | None = None
) -> Tensor:
    r"""P-values of $E[x] \ge m$ by betting against it, docs/certificates.md, Eq. (wealth).

    A gambler with one coin stakes a fixed share on "the next loss is below the level":

    $$W_i = \frac{1}{J} \sum_{j=1}^{J} \prod_{s=1}^{i} (1 + \lambda_j (m - x_s)),
      \qquad p = 1 / \max_{i \le n} W_i,$$

    with $m$ the level. If the mean is $m$ or more the wealth is a nonnegative supermartingale, so
    it ever reaches $1 / \delta$ with a probability of at most $\delta$ (Ville's inequality): the
    p-value is exact for every number of problems, and one may stop after any of them. A larger loss
    never lowers it. It depends on the order of the problems, which must not depend on the losses;
    `count_safe_means` draws one.

    Args:
        losses: At most 1 each, of n problems under C thresholds, shape [n, C]; below 0 is a gain.
        level: m in (0, 1).
        confidence: 1 - delta; the bets $\lambda_j$ are those that serve it best.
        num_planned: The number of problems that the bets are made for; n if None. Give it where
            recording may end early, since bets must not depend on when that is.

    Returns:
        Shape [C], in the dtype of the losses.

    Source: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting".

    Examples:
        >>> losses = torch.zeros(45, 1, dtype=torch.float64)
        >>> betting_p_values(losses, 0.05, 0.9).item() <= 0.1  # 0.95^45 = 0.0994
        True
    """
    wealth = torch.zeros_like(losses)
    bets = _bets(len(losses) if num_planned is None else num_planned, level, confidence)
    for bet in bets:
        wealth += _log_gains(losses, level, bet).cumsum_(0).exp_()
    return len(bets) / wealth.amax(0).clamp_min(len(bets))


def betting_growth(losses: Tensor, level: float, confidence: float) -> float:
    """How much the logarithm of the wealth grows with a problem, by the best bet in hindsight.

    Some log(1 / delta) / growth problems like these will do; none if it is not above 0.

    Args:
        losses: Shape [n], as in `betting_p_values`.
        level: In (0, 1).
        confidence: 1 - delta.
    """
    bets = _bets(100 * len(losses), level, confidence)
    return max(_log_gains(losses, level, bet).mean().item() for bet in bets)


def _log_gains(losses: Tensor, level: float, bet: float) -> Tensor:
    """By a rounding, the largest bet against a loss of 1 might lose more than everything."""
    return (bet * (level - losses)).clamp_min_(-1).log1p_()


def _bets(num_problems: int, level: float, confidence: float) -> list[float]:
    """Shares from the best against 0/1 losses of just refutable a mean up to the largest there is.

    The largest, 1 / (1 - level), loses everything to a single loss of 1, and needs the fewest
    problems without a loss. Losses of less variance are best met by what lies between.
    """
    largest = 1 / (1 - level)
    least = math.sqrt(-2 * math.log1p(-confidence) / (num_problems * level * (1 - level)))
    num = 1 + max(0, math.ceil(math.log(largest / least, _RATIO)))
    return [max(largest * _RATIO**-step, min(least, largest)) for step in range(num)]


def binomial_p_values(losses: Tensor, level: float) -> Tensor:
    """P-values of E[x] >= level for losses that are 0 or 1: P(Bin(n, level) <= sum of x).

    Exact for a number of problems that was fixed beforehand, and invariant under their order.

    Args:
        losses: 0 or 1, of n problems under C thresholds, shape [n, C].
        level: In (0, 1).

    Returns:
        Shape [C], in the dtype of the losses.

    Source: Clopper & Pearson 1934.

    Examples:
        >>> losses = torch.zeros(45, 1, dtype=torch.float64)
        >>> round(binomial_p_values(losses, 0.05).item(), 6) == round(0.95**45, 6)
        True
    """
    n = len(losses)
    k = torch.arange(n + 1, dtype=losses.dtype, device=losses.device)
    log_choose = math.lgamma(n + 1) - (k + 1).lgamma() - (n - k + 1).lgamma()
    log_prob = log_choose + k * math.log(level) + (n - k) * math.log1p(-level)
    log_cdf = log_prob.logcumsumexp(0).clamp_max(0)
    return log_cdf[losses.sum(0).round().long()].exp()


def fewest_problems(level: float, confidence: float) -> int:
    """The fewest problems that can certify a level: without a loss they give (1 - level)^n.

    Examples:
        >>> fewest_problems(0.02, 0.9)
        114
    """
    return math.ceil(math.log1p(-confidence) / math.log1p(-level))
