"""What rules read off a curve, in units that do not depend on those of the metric."""

import numpy as np

from haltwise.curves.curves import Curve, Floats

__all__ = ["best_so_far", "first_known", "relative", "share_spent"]

_FAR = 3.0  # starts away from the target, beyond which a loss is as good as lost


def best_so_far(loss: Floats) -> Floats:
    """The lowest loss until each point, inf before the first that is known, shape [n]."""
    best: Floats = np.fmin.accumulate(np.where(np.isnan(loss), np.inf, loss))
    return best


def first_known(loss: Floats) -> Floats:
    """The first finite loss as of each point, NaN before there is one, shape [n]."""
    found = np.flatnonzero(np.isfinite(loss))
    start = np.full(len(loss), np.nan)
    if len(found):
        start[found[0] :] = loss[found[0]]
    return start


def relative(curve: Curve) -> Floats:
    """The loss as a share of the way that was left at the start, shape [n].

    It is 1 at the start and 0 at the target. Without a target, or where a run begins beyond it,
    the size of the first loss takes the place of the way: it then falls by the relative
    improvement. Losses that are not known count as far from the target, as those of a run that
    diverged do.
    """
    loss = curve.loss
    start = first_known(loss)
    way = start - curve.loss_target
    size = np.abs(start)
    way = np.where(way > 0, way, np.where(size > 0, size, 1.0))
    z = 1 + (loss - start) / way
    return np.clip(np.where(np.isfinite(z), z, _FAR), -_FAR, _FAR)


def share_spent(curve: Curve) -> Floats:
    """The cost as a share of the budget, or the cost itself where no budget is known; [n]."""
    known = np.isfinite(curve.budget) and curve.budget > 0
    return curve.cost / curve.budget if known else curve.cost
