"""Give a run up that is worse than so many of its peers were at the same time (median rule)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import numpy as np

from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.progress import best_so_far, relative, share_spent
from haltwise.curves.rule import CurveRule

__all__ = ["PEER_SHARES", "Peers", "PeersRule"]

PEER_SHARES: Floats = np.linspace(0.0, 1.0, 41)
"""The shares of the budget at which runs are compared with their peers."""

_CLOSE = 1e-9  # shares that are alike but for rounding
_FEWEST = 5  # peers of the same task, else those of all tasks count
_MOST = 400  # of a task that are kept
_ALL = "all tasks, in relative units"


@final
@dataclass(frozen=True, eq=False)
class Peers:
    """The best losses of recorded runs at shares of their budgets, a table a task."""

    tables: Mapping[str, Floats] = field(default_factory=dict)
    """By task, shape [peers, shares], NaN where a run had ended; those of `_ALL` are of relative
    losses."""

    @classmethod
    def of(cls, curves: Curves) -> "Peers":
        """Remember recorded runs."""
        tables = {_ALL: _table([_at_shares(curve, relative(curve)) for curve in curves])}
        for task in np.unique(curves.task):
            mine = np.flatnonzero(curves.task == task)
            if len(mine) >= _FEWEST:
                rows = [_at_shares(curve, curve.loss) for curve in (curves[int(i)] for i in mine)]
                tables[str(task)] = _table(rows)
        return cls(tables)

    def share_worse(self, curve: Curve) -> Floats:
        """The share of the peers whose best was worse than this run's at each point, ties half.

        Peers of the same task are compared by the metric, else those of all tasks by the share of
        the way that was left. Only those count that were still running. 1 where nobody was.
        """
        known = curve.task in self.tables
        table = self.tables.get(curve.task if known else _ALL, np.empty((0, len(PEER_SHARES))))
        best = best_so_far(curve.loss if known else relative(curve))
        spent = share_spent(curve)
        place = np.searchsorted(PEER_SHARES, spent + _CLOSE, side="right") - 1
        place = place.clip(0, len(PEER_SHARES) - 1)
        if len(table) == 0:
            return np.ones(len(best))
        then = table[:, place]  # NaN compares as neither worse nor better
        running = np.maximum((~np.isnan(then)).sum(0), 1)
        better = (then < best).sum(0) + 0.5 * (then == best).sum(0)
        share: Floats = 1 - better / running
        return share


def _at_shares(curve: Curve, loss: Floats) -> Floats:
    """The best loss known at each of the shares, NaN from where the run had ended."""
    best, spent = best_so_far(loss), share_spent(curve)
    last = np.searchsorted(spent, PEER_SHARES + _CLOSE, side="right") - 1
    found = np.where(last >= 0, best[last.clip(0)], np.inf)
    return np.where(spent[-1] + _CLOSE >= PEER_SHARES, found, np.nan)


def _table(rows: Sequence[Floats]) -> Floats:
    every = np.linspace(0, len(rows) - 1, min(len(rows), _MOST)).round().astype(int)
    return np.stack([rows[i] for i in every])


@final
@dataclass(frozen=True)
class PeersRule(CurveRule):
    """The score is the share of the peers that did worse at the same share of their budget.

    Source: the median rule of Google Vizier (Golovin et al. 2017), Optuna's `PercentilePruner`.
    """

    highest_score: ClassVar[float] = 1.0

    begin: float = 0.0
    """The share of the budget before which nobody is given up."""
    peers: Peers = field(default_factory=Peers, repr=False, compare=False)

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(begin) for begin in (0.0, 0.1, 0.25)]

    def fit(self, curves: Curves) -> Self:
        return replace(self, peers=Peers.of(curves))

    def score(self, curve: Curve) -> Floats:
        return np.where(share_spent(curve) < self.begin, np.inf, self.peers.share_worse(curve))


CURVE_RULES = {"peers": PeersRule}
