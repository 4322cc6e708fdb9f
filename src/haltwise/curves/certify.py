"""Certify the level at which runs are given up: what share of the successes it loses at most."""

from dataclasses import replace

import numpy as np

from haltwise._core.errors import require
from haltwise.certificates import (
    Certificate,
    Promise,
    Refusal,
    RiskTable,
    certify_table,
    set_aside,
)
from haltwise.curves.copies import require_unseen_runs, warn_of_copied_runs
from haltwise.curves.curves import Curves
from haltwise.curves.levels import GiveUps, candidate_levels
from haltwise.curves.rule import CurveRule, checked_scores

__all__ = ["certify_curves"]

_MOST_LEVELS = 100


def certify_curves(
    rule: CurveRule,
    curves: Curves,
    *,
    level: float,
    confidence: float | None,
    grouped: bool = True,
) -> Certificate | Refusal:
    """Find the highest score level whose share of successes given up is certified.

    The levels to try are found on one run in ten, or on one group in ten, set aside; the others
    certify. The statement is one of `haltwise.certify`: about the mean over runs with a confidence,
    or about the next group with a probability, or in expectation if confidence is None.

    Args:
        rule: A curve model or another rule, learned on other runs than these.
        curves: Runs with targets, at least some of which meet them, none ended early by the rule.
        level: The share of successes that may be given up.
        confidence: Such as 0.9.
        grouped: Whether whole groups of `curves` are exchangeable, not runs. Where each run is a
            group of its own, as without a column of groups, it is runs.

    Returns:
        A certificate, whose `score_level` is the level for `RunMonitor`; or a refusal with the
        number of successes or groups needed.

    Raises:
        InputError: No run has a target, or no run meets it; the rule was learned on one in a
            hundred of the runs or more; a score is NaN; or the rule holds something by which it
            cannot be known again, such as an open file.

    Warns:
        CalibrationWarning: One run in a hundred or more has the very points of another, or groups
            have too few successes for the level to matter.

    Examples:
        >>> from haltwise.curves import learn
        >>> rng = np.random.default_rng(0)
        >>> ends = rng.uniform(0.2, 2.0, (400, 1))
        >>> losses = ends + (3 - ends) * 0.9 ** np.arange(30)
        >>> groups = [str(i % 2) for i in range(400)]
        >>> runs = Curves.from_matrix(losses, target=1.0, group=groups)
        >>> model = learn(runs.select(np.arange(100))).model
        >>> found = certify_curves(
        ...     model, runs.select(np.arange(100, 400)), level=0.05, confidence=0.9, grouped=False
        ... )
        >>> found.require().statement
        'with 90 % confidence, the share of successes given up is at most 0.05'
    """
    digest, succeeded = rule.digest, curves.succeeded
    require(
        bool(succeeded.any()),
        "no run meets its target, so there is no success to lose; name another target",
    )
    require_unseen_runs(rule, curves)
    groups = curves.group.tolist() if grouped else None
    warn_of_copied_runs(curves, groups)
    aside = set_aside(curves.num_runs, groups).numpy()
    scores = checked_scores(rule, curves)
    tuning = curves.select(aside)
    levels = candidate_levels(tuning, [scores[run] for run in np.flatnonzero(aside)])
    require(
        len(levels) > 0 and not aside.all(),
        f"{curves.num_runs} runs are too few to set some aside and certify with the others",
    )
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, _MOST_LEVELS).round().astype(int))]
    rest = np.flatnonzero(~aside)
    kept = curves.select(rest)
    stops = GiveUps.of(kept, [scores[run] for run in rest], levels)
    table = RiskTable.of(
        stops.lost,
        stops.saved,
        groups=kept.group.tolist() if grouped else None,
        subjects=stops.succeeded,
        risk="share of successes given up",
    )
    found = certify_table(table, level=level, confidence=confidence)
    if isinstance(found, Refusal):
        by_group = found.promise is not Promise.MEAN
        num = len(np.unique(curves.group[aside])) if by_group else int(aside.sum())
        what = "groups" if by_group else "runs"
        return replace(found, reason=f"{found.reason} ({num} {what} were set aside to find levels)")
    return replace(
        found,
        num_set_aside=int(aside.sum()),
        score_level=float(levels[found.threshold]),
        model=digest,
        cost_unit=curves.cost_unit,
        budgets=(float(curves.budget.min()), float(curves.budget.max())),
    )
