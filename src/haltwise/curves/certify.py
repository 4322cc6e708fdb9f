"""Certify the level at which runs are given up: what share of the successes it loses at most."""

import warnings
from dataclasses import replace

import numpy as np

from haltwise._core.errors import require
from haltwise.certificates import Certificate, Refusal, RiskTable, certify_table
from haltwise.curves.copies import require_unseen_runs, warn_of_copied_runs
from haltwise.curves.curves import Curves, Integers
from haltwise.curves.levels import GiveUps, candidate_levels
from haltwise.curves.rule import CurveRule, checked_scores

__all__ = ["certify_curves"]

_MOST_LEVELS = 100  # tried at once


def certify_curves(
    rule: CurveRule,
    curves: Curves,
    *,
    level: float,
    confidence: float | None,
    grouped: bool = True,
) -> Certificate | Refusal:
    """Find the highest score level whose share of successes given up is certified.

    The statement is one of `haltwise.certify`: about the mean over runs with a confidence, or about
    the next group with a probability, or in expectation if confidence is None. All runs certify and
    offer levels to try, for a higher level gives up whatever a lower one does
    (docs/certificates.md, Eq. (nested)).

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
    digest, curves = rule.digest, curves.measured()
    require(
        bool(curves.succeeded.any()),
        "no run meets its target, so there is no success to lose; name another target",
    )
    require_unseen_runs(rule, curves)
    groups = curves.group.tolist() if grouped else None
    warn_of_copied_runs(curves, groups)
    scores = checked_scores(rule, curves)
    # At its last point a run is given up for nothing; else with each level more is saved.
    levels = candidate_levels(curves, [score[:-1] for score in scores])
    if len(levels) == 0:
        levels = candidate_levels(curves, scores)
    require(
        len(levels) > 0,
        f"{type(rule).__name__} has no finite score before a run ends, so it gives none of them "
        "up; certify it by longer runs",
    )

    def certified(places: Integers) -> Certificate | Refusal:
        stops = GiveUps.of(curves, scores, levels[places])
        table = RiskTable.of(
            stops.lost,
            stops.saved,
            groups=groups,
            subjects=stops.succeeded,
            risk="share of successes given up",
        )
        return certify_table(table, level=level, confidence=confidence)

    places = _spread(0, len(levels) - 1)
    found = certified(places)
    if isinstance(found, Refusal):
        return found
    until = places[min(found.threshold + 1, len(places) - 1)]
    places = np.union1d(places, _spread(int(places[found.threshold]), int(until)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the same runs it was said before
        found = certified(places).require()
    return replace(
        found,
        score_level=float(levels[places[found.threshold]]),
        model=digest,
        cost_unit=curves.cost_unit,
        budgets=(float(curves.budget.min()), float(curves.budget.max())),
    )


def _spread(first: int, last: int) -> Integers:
    """Whole numbers from the first to the last, evenly spread where there are many."""
    return np.unique(np.linspace(first, last, _MOST_LEVELS).round().astype(np.int64))
