"""The next group: conformal bounds that know groups alone, and how many of them they need."""

import math
from fractions import Fraction

from torch import Tensor

__all__ = [
    "count_safe_in_expectation",
    "count_safe_next_group",
    "groups_for_confidence",
    "groups_for_expectation",
]


def groups_for_confidence(confidence: float) -> int:
    """The fewest groups for a statement about the next one: (G + 1) (1 - confidence) >= 1.

    Examples:
        >>> groups_for_confidence(0.9), groups_for_confidence(0.95)
        (9, 19)
    """
    return math.ceil(1 / _miss(confidence)) - 1


def count_safe_next_group(means: Tensor, level: float, confidence: float) -> int:
    """The number of thresholds under which the next group's mean loss is at most `level`.

    With m = floor((G + 1) (1 - confidence)), it is the m-th least of the numbers that the groups
    themselves allow: of G + 1 exchangeable groups the last is among the m of least number with a
    probability of at most m / (G + 1) (docs/certificates.md, Eq. (next-group)).

    Args:
        means: Mean loss of G exchangeable groups under C thresholds, float64 [G, C]; G is at least
            `groups_for_confidence`.
        level: In the units of the means.
        confidence: In (0, 1).

    Source: Vovk, Gammerman & Shafer 2005; Angelopoulos, Bates, Fisch, Lei & Schuster 2022,
    "Conformal risk control" (arXiv 2208.02814), of the loss 1{mean > level}.
    """
    allowed = (means.cummax(1).values <= level).sum(1).sort().values
    return int(allowed[math.floor(_miss(confidence) * (len(means) + 1)) - 1])


def groups_for_expectation(level: float) -> int:
    """The fewest groups for a statement about the expectation: 1 / (G + 1) <= level.

    Args:
        level: In units of the largest loss there is.

    Examples:
        >>> groups_for_expectation(0.02)
        49
    """
    return math.ceil(1 / Fraction(repr(level))) - 1


def count_safe_in_expectation(means: Tensor, level: float) -> int:
    """The number of thresholds under which the next group's expected loss is at most `level`.

    Conformal risk control: the mean over G groups and one of the largest loss, 1, is at most the
    level, where the loss of a group is the largest under any threshold as safe, see
    docs/certificates.md, Eq. (expectation). The expectation is over the recorded groups, too.

    Args:
        means: Mean loss of G exchangeable groups under C thresholds, at most 1, float64 [G, C].
        level: In (0, 1).

    Source: Angelopoulos, Bates, Fisch, Lei & Schuster 2022 (arXiv 2208.02814).
    """
    envelope = means.cummax(1).values
    within = envelope.sum(0) + 1 <= level * (len(means) + 1) + 1e-12
    return int(within.sum())


def _miss(confidence: float) -> Fraction:
    """1 - confidence exactly as it is written: in binary, 1 - 0.9 is below 0.1."""
    return 1 - Fraction(repr(confidence))
