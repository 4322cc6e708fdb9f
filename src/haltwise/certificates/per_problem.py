"""The mean over problems, with confidence: thresholds tested in order, by Learn then Test."""

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise.certificates.p_values import betting_p_values, binomial_p_values

__all__ = ["count_safe_means"]

_AT_ONCE = 2**21  # losses tested at once, 16 MB


def count_safe_means(losses: Tensor, level: float, confidence: float, *, is_indicator: bool) -> int:
    """The number of thresholds whose mean loss is at most `level`, with confidence in all of them.

    Thresholds are tested from the first on, each at 1 - confidence, until one fails; so whatever is
    chosen among those that passed, it is wrong with a probability of at most 1 - confidence
    (docs/certificates.md, Eq. (sequence)). Bets are placed in an order drawn for the purpose: of
    problems that were recorded from easy to hard, the wealth on the way would certify the easy.

    Args:
        losses: Of n exchangeable problems under C thresholds, at most 1, float64 [n, C].
        level: In (0, 1).
        confidence: In (0, 1).
        is_indicator: Whether losses are 0 or 1 by definition.

    Source: Angelopoulos, Bates, Candes, Jordan & Lei 2021, "Learn then Test" (arXiv 2110.01052).

    Examples:
        >>> import torch
        >>> rare = torch.zeros(100, 2, dtype=torch.float64)
        >>> rare[:10, 1] = 1
        >>> count_safe_means(rare, 0.05, 0.9, is_indicator=True)
        1
    """
    n, num_thresholds = losses.shape
    order = torch.randperm(n, generator=stream(0, "order of bets"), device="cpu").to(losses.device)
    width = max(1, _AT_ONCE // n)
    for begin in range(0, num_thresholds, width):
        part = losses[:, begin : begin + width]
        if is_indicator:
            p_values = binomial_p_values(part, level)
        else:
            p_values = betting_p_values(part[order], level, confidence)
        failed = (p_values > 1 - confidence).nonzero()
        if len(failed):
            return begin + int(failed[0])
    return num_thresholds
