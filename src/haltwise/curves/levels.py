"""The level of a score below which runs are given up: what it saves, what it loses."""

from collections.abc import Sequence
from typing import NamedTuple, Self, final

import numpy as np

from haltwise._core.errors import require
from haltwise.curves.curves import Booleans, Curves, Floats, Integers, Names

__all__ = [
    "MIN_POINTS",
    "GiveUps",
    "candidate_levels",
    "first_below",
    "level_for",
    "quantile_levels",
    "scores_in_use",
    "stops_below",
]

MIN_POINTS = 3
"""Points that a run has before a monitor gives it up, unless it is told otherwise."""

_MOST_LEVELS = 2000
_QUANTILES = 150


@final
class GiveUps(NamedTuple):
    """What became of n runs given up at the first score below each of C levels.

    A run is not given up at or after the point at which it meets its target.

    Attributes:
        level: The levels, increasing, shape [C].
        saved: The cost that each run did not spend, shape [n, C].
        lost: Which runs were given up though they meet their target, shape [n, C].
        spent: What each run spends if it is let go on, shape [n].
        succeeded: Which runs meet their target if they are let go on, shape [n].
    """

    level: Floats
    saved: Floats
    lost: Booleans
    spent: Floats
    succeeded: Booleans

    @classmethod
    def of(cls, curves: Curves, scores: Sequence[Floats], level: Floats) -> Self:
        """Give up runs whose scores, one for each point of each run, lie below a level.

        Examples:
            >>> curves = Curves.from_matrix([[3.0, 2.0, 1.5], [3.0, 2.9, 2.9]], target=1.5)
            >>> scores = [np.array([0.5, 0.5, 0.5]), np.array([0.5, 0.1, 0.1])]
            >>> stops = GiveUps.of(curves, scores, np.array([0.2]))
            >>> stops.saved.tolist(), stops.lost.tolist()
            ([[0.0], [1.0]], [[False], [False]])
        """
        num, success, spent = curves.num_runs, curves.success, curves.spent
        saved = np.zeros((num, len(level)))
        given_up = np.zeros((num, len(level)), bool)
        for run, score in enumerate(scores):
            end = success[run] if success[run] >= 0 else len(score)
            place = first_below(score[:end], level)
            given_up[run] = place < end
            cost = curves.cost[curves.offset[run] : curves.offset[run + 1]]
            saved[run, given_up[run]] = spent[run] - cost[place[given_up[run]]]
        succeeded = success >= 0
        return cls(level, saved, given_up & succeeded[:, None], spent, succeeded)

    def select(self, where: Booleans | Integers) -> Self:
        """The runs at `where`."""
        return self._replace(
            saved=self.saved[where],
            lost=self.lost[where],
            spent=self.spent[where],
            succeeded=self.succeeded[where],
        )

    @property
    def share_saved(self) -> Floats:
        """The share of all cost that is saved, shape [C]."""
        share: Floats = self.saved.sum(0) / max(self.spent.sum(), 1e-300)
        return share

    @property
    def share_lost(self) -> Floats:
        """The share of successes that is lost, shape [C]."""
        share: Floats = self.lost.sum(0) / max(self.succeeded.sum(), 1)
        return share


def scores_in_use(scores: Sequence[Floats], min_points: int = MIN_POINTS) -> list[Floats]:
    """The scores by which monitors go: infinite before a run has as many points as it needs.

    So figures are those of what is done in use.
    """
    return [np.where(np.arange(len(score)) < min_points - 1, np.inf, score) for score in scores]


def first_below(score: Floats, level: Floats) -> Integers:
    """The first place at which a score lies below each level, its length where none does."""
    lowest = np.minimum.accumulate(score)
    return np.searchsorted(-lowest, -level, side="right")


def stops_below(scores: Sequence[Floats], levels: Floats) -> Integers:
    """The first point whose score lies below each level, the number of points if none; [n, L].

    Examples:
        >>> stops_below([np.array([3.0, 1.0, 2.0])], np.array([1.0, 1.5, 9.0])).tolist()
        [[3, 1, 0]]
    """
    return np.stack([first_below(score, levels) for score in scores])


def quantile_levels(scores: Sequence[Floats]) -> Floats:
    """Levels to choose among: quantiles of all scores and of the lowest of each run, and never."""
    lowest = np.array([score.min() for score in scores])
    every = np.concatenate(scores)
    marks = np.linspace(0, 1, _QUANTILES)
    found = [
        np.quantile(values, marks, method="lower")
        for values in (lowest[np.isfinite(lowest)], every[np.isfinite(every)])
        if len(values)
    ]
    highest = np.nextafter(max((each[-1] for each in found), default=0.0), np.inf)
    return np.unique(np.concatenate(([-np.inf, highest], *found)))


def candidate_levels(curves: Curves, scores: Sequence[Floats]) -> Floats:
    """Levels to choose among: the lowest scores of runs before their end, increasing."""
    ends = np.where(curves.success >= 0, curves.success, curves.num_points)
    lowest = np.array(
        [score[:end].min(initial=np.inf) for score, end in zip(scores, ends, strict=True)]
    )
    levels = np.unique(np.nextafter(lowest[np.isfinite(lowest)], np.inf))
    return levels[:: max(1, len(levels) // _MOST_LEVELS)]


def level_for(stops: GiveUps, group: Names, lost: float, *, margin: float = 0.0) -> float:
    """The highest level that loses no more than a share of the successes, nor does any below it.

    Args:
        stops: On runs that the scores were not learned on.
        group: Of each run, shape [n].
        lost: The share of successes that may be lost.
        margin: Standard errors, over groups, by which the share lost must stay below: another
            group may fare worse than these.

    Returns:
        The level; below every score if none will do.
    """
    require(0 < lost < 1, f"the share of successes to lose lies between 0 and 1, got {lost}")
    share = stops.share_lost
    if margin:
        # The delete-a-group jackknife of a ratio.
        groups, place = np.unique(group[stops.succeeded], return_inverse=True)
        if len(groups) < 2:
            share = share + margin * np.sqrt(share * (1 - share) / max(stops.succeeded.sum(), 1))
        else:
            losses, sizes = stops.lost[stops.succeeded], np.bincount(place)
            by_group = np.stack([losses[place == one].sum(0) for one in range(len(groups))])
            without = (by_group.sum(0) - by_group) / (sizes.sum() - sizes)[:, None]
            spread = ((without - without.mean(0)) ** 2).sum(0) * (len(groups) - 1) / len(groups)
            share = share + margin * np.sqrt(spread)
    above = np.flatnonzero(share > lost)
    last = (above[0] if len(above) else len(share)) - 1
    return float(stops.level[last]) if last >= 0 else -np.inf
