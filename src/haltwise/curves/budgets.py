"""Budgets that are alike for all runs, as shares of what each may spend."""

import numpy as np

from haltwise.curves.curves import Curves, Floats, Integers

__all__ = ["SHARES", "shares_to_try", "stops_at_shares"]

SHARES: Floats = np.linspace(0.0, 1.0, 41)
"""Equal shares of the budget, as they are drawn."""

_BESIDE: Floats = np.geomspace(0.25, 4.0, 41)
_CLOSE = 1e-9  # a share of the share: what rounding makes of a cost that was to be reached


def stops_at_shares(curves: Curves, shares: Floats) -> Integers:
    """The first point of each run where so much of its budget is spent, or its last; [n, S]."""
    least = shares * (1 - _CLOSE)
    stops = [np.searchsorted(run.cost, least * run.budget, side="left") for run in curves]
    return np.minimum(np.stack(stops), curves.num_points[:, None] - 1)


def shares_to_try(curves: Curves, bills: Floats) -> Floats:
    """Shares among which is the best for all runs in hindsight, in ascending order, shape [S].

    Beside the best there are equal ones, and some near it: where some of the runs are left out
    another may be the best.

    Args:
        curves: Runs with budgets.
        bills: What a stop at each point costs in all, shape [P].
    """
    near = _best(curves, bills) * _BESIDE
    return np.unique(np.concatenate((SHARES, near[near <= 1])))


def _best(curves: Curves, bills: Floats) -> float:
    """The share of least mean bill, exactly: a greater one sends one run after the other on."""
    ends = np.zeros(len(bills), bool)
    ends[curves.offset[1:] - 1] = True
    run = np.repeat(np.arange(curves.num_runs), curves.num_points)
    reached = curves.cost / np.where(curves.budget > 0, curves.budget, 1.0)[run]
    # Once more than this is to be spent, the next point is reached; and no more than all is.
    left = np.flatnonzero(~ends & (reached < 1 - _CLOSE))
    left = left[np.argsort(reached[left], kind="stable")]
    passed = reached[left]
    total = np.cumsum(np.append(0.0, bills[left + 1] - bills[left]))
    # Points that are reached at one share are left together.
    told_apart = np.append(passed[1:] * (1 - _CLOSE) > passed[:-1], True)
    places = np.append(0, np.flatnonzero(told_apart) + 1)
    place = int(places[total[places].argmin()])
    return float(passed[place]) if place < len(passed) else 1.0
