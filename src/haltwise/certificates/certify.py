"""The one entry from a risk table to a certificate, or to a refusal with the number needed."""

import math
from fractions import Fraction

from torch import Tensor

from haltwise._core.errors import CalibrationWarning, require, warn
from haltwise._core.settings import real_number
from haltwise.certificates.certificate import Certificate, Promise, Refusal
from haltwise.certificates.p_values import betting_growth, fewest_problems
from haltwise.certificates.per_group import (
    count_safe_in_expectation,
    count_safe_next_group,
    groups_for_confidence,
    groups_for_expectation,
)
from haltwise.certificates.per_problem import count_safe_means
from haltwise.certificates.table import RiskTable

__all__ = ["certify_table", "require_promise"]

_LEAST = 1e-300  # of level / bound and of confidence: smaller ones underflow


def certify_table(
    table: RiskTable, *, level: float, confidence: float | None
) -> Certificate | Refusal:
    """The threshold that saves most among those certified to keep the risk at or below the level.

    Without groups the mean over problems is certified, with confidence. With groups it is the mean
    in the next group: with a probability of `confidence`, or, if that is None, in expectation.

    A loss of 0 or 1 in a group of one problem has a mean of 0 or 1, so that with a probability the
    next mean is at most any level if the next loss is 0: no level would say more than another. Of
    groups of one problem the mean over problems is therefore certified, as without groups.

    Args:
        table: Calibration problems; the whole statement rests on how they were drawn.
        level: The bound on the risk, in its own units, above 0 and below the table's bound.
        confidence: In (0, 1).

    Raises:
        InputError: Level or confidence is impossible.

    Warns:
        CalibrationWarning: No group has so many problems with losses of 0 or 1 that a share of
            them could be above 0 and within the level.

    Examples:
        >>> table = RiskTable.of([[0.0, 0.0]] * 13, groups=range(13))
        >>> certify_table(table, level=0.02, confidence=None)
        Refusal(not certifiable: 13 groups, 49 needed; record more groups, or allow a level of \
0.0715)
    """
    grouped = table.groups is not None
    level, confidence = require_promise(level, confidence, table.bound, grouped=grouped)
    if table.groups is not None and not (
        confidence is not None and table.is_indicator and table.has_groups_of_one
    ):
        if confidence is not None and table.is_indicator:
            _warn_of_small_groups(table, level, confidence)
        return _next_group(table, level, confidence)
    assert confidence is not None
    return _mean(table, level, confidence)


def require_promise(
    level: float, confidence: float | None, bound: float = 1.0, *, grouped: bool = True
) -> tuple[float, float | None]:
    """Level and confidence as numbers, where a certificate can have them.

    Args:
        level: On the risk.
        confidence: None for an expectation.
        bound: The largest loss of a problem.
        grouped: Whether problems have groups, of which there is an expectation.

    Raises:
        InputError: Level or confidence is impossible.
    """
    level = real_number("level", level)
    require(
        _LEAST <= level / bound < 1,
        f"level must be above 0 and below {bound:g}, the largest loss of a problem, got {level:g}",
    )
    if confidence is not None:
        confidence = real_number("confidence", confidence)
        require(
            _LEAST <= confidence < 1, f"confidence must be above 0 and below 1, got {confidence:g}"
        )
    require(
        confidence is not None or grouped,
        "give a confidence (--confidence); without one, give the group of each problem",
    )
    return level, confidence


def _warn_of_small_groups(table: RiskTable, level: float, confidence: float) -> None:
    largest = table.num_in_largest_group
    if level * largest < 1:
        warn(
            f"no group has more than {largest} problems that the risk is about, so a share of at "
            f"most {level:g} of one group is none of it: certified is that the next group loses "
            f"none, with a probability of {confidence:g}, and over many groups more than the level "
            f"may be lost; ask for a level of {_ceiling(1 / largest)} or more, or, with "
            "confidence=None, for the level in expectation",
            CalibrationWarning,
        )


def _mean(table: RiskTable, level: float, confidence: float) -> Certificate | Refusal:
    losses, share = table.relative_losses(), level / table.bound
    n, safe = len(losses), 0
    needed: int | None = fewest_problems(share, confidence)
    way_out = "record more problems, allow a larger level or less confidence"
    if needed is None or n >= needed:
        safe = count_safe_means(losses, share, confidence, is_indicator=table.is_indicator)
        growth = betting_growth(losses[:, 0], share, confidence)
        needed = max(n + 1, math.ceil(-math.log(1 - confidence) / growth)) if growth > 0 else None
        way_out = (
            f"even the safest threshold has a risk of {losses[:, 0].mean() * table.bound:.4g} on "
            "these; allow a larger level, or offer safer thresholds or another rule"
        ) + ("; the number needed is a rough forecast from it" if needed else "")
    if safe == 0:
        return Refusal(Promise.MEAN, table.risk, level, confidence, n, needed, way_out)
    return _certificate(table, losses, Promise.MEAN, level, confidence, safe)


def _next_group(table: RiskTable, level: float, confidence: float | None) -> Certificate | Refusal:
    means, share = table.group_means(), level / table.bound
    num = len(means)
    if confidence is None:
        promise, needed = Promise.EXPECTATION, groups_for_expectation(share)
        way_out = f"allow a level of {_ceiling(table.bound / (num + 1))}"
    else:
        promise, needed = Promise.NEXT_GROUP, groups_for_confidence(confidence)
        way_out = f"ask for a confidence of {math.floor(1000 * num / (num + 1)) / 1000:g}"
    if num < needed:
        reason = f"record more groups, or {way_out}"
        return Refusal(promise, table.risk, level, confidence, num, needed, reason)
    if confidence is None:
        safe = count_safe_in_expectation(means, share)
    else:
        safe = count_safe_next_group(means, share, confidence)
    if safe == 0:
        above = int((means[:, 0] > share).sum())
        reason = (
            f"even the safest threshold has a risk above the level in {above} of them, and of "
            f"{means[:, 0].mean() * table.bound:.4g} on average; allow a larger level, or offer "
            "safer thresholds or another rule"
        )
        return Refusal(promise, table.risk, level, confidence, num, None, reason)
    return _certificate(table, means, promise, level, confidence, safe)


def _certificate(
    table: RiskTable,
    rows: Tensor,
    promise: Promise,
    level: float,
    confidence: float | None,
    num_safe: int,
) -> Certificate:
    """That of the threshold which saves most among the first `num_safe`; the safest of equals."""
    savings, risks = table.savings.mean(0), rows.mean(0) * table.bound
    best = int(savings[:num_safe].argmax())
    within = savings[risks <= level]
    return Certificate(
        promise=promise,
        risk=table.risk,
        level=level,
        confidence=confidence,
        bound=table.bound,
        threshold=best,
        num_thresholds=table.num_thresholds,
        num_problems=table.num_problems,
        num_groups=None if promise is Promise.MEAN else len(rows),
        num_set_aside=0,
        num_clipped=table.num_clipped,
        mean_risk=risks[best].item(),
        savings=savings[best].item(),
        uncertified_savings=max(within.max().item() if len(within) else 0.0, savings[best].item()),
        policy=None,
        score_level=None,
        unit=None,
        price=None,
        model=None,
    )


def _ceiling(value: float) -> str:
    """A level rounded up to three digits, so that it suffices."""
    scale = Fraction(10) ** (3 - math.ceil(math.log10(value)))
    return f"{float(math.ceil(value * float(scale)) / scale):g}"
