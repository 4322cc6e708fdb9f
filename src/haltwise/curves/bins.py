"""Bins of features for boosted trees, of equal weight; each feature is sorted once.

scikit-learn sorts a weighted feature again for each of its bins, which takes longer than the trees.
"""

from typing import NamedTuple, Self, final

import numpy as np
import numpy.typing as npt

from haltwise.curves.curves import Floats

__all__ = ["Bins"]


@final
class Bins(NamedTuple):
    """Features as numbers of bins.

    Attributes:
        number: The bin of each value, NaN where that is NaN, shape [n, F]; no bin is empty.
        edges: For each feature, what lies between neighbouring bins; the lower one includes it.
    """

    number: Floats
    edges: list[Floats]

    @classmethod
    def of(cls, features: Floats, weight: Floats, most: int) -> Self:
        """Bins of features [n, F] with weights [n] above 0, at most so many a feature."""
        number, edges = np.full(features.shape, np.nan), []
        for place, column in enumerate(features.T):
            known = ~np.isnan(column)
            values = column[known]
            between = _edges(values, weight[known], most)
            occupied = np.unique(np.searchsorted(between, values))
            edges.append(between[occupied[:-1]])
            number[known, place] = np.searchsorted(edges[-1], values)
        return cls(number, edges)

    def threshold(self, feature: npt.NDArray[np.int64], between: Floats) -> Floats:
        """The thresholds of features that lie between two numbers of bins, infinity as it is."""
        found = between.copy()
        for place in np.flatnonzero(np.isfinite(between)):
            found[place] = self.edges[feature[place]][int(between[place])]
        return found


def _edges(values: Floats, weight: Floats, most: int) -> Floats:
    """Edges between single values where they are few, and between quantiles where they are many."""
    order = np.argsort(values, kind="stable")
    values, until = values[order], np.cumsum(weight[order])
    distinct = np.unique(values)
    if len(distinct) <= most:
        return (distinct[:-1] + distinct[1:]) / 2
    rank = np.arange(1, most) / most * until[-1]
    place = np.searchsorted(until, rank).clip(max=len(values) - 1)
    above = values[(place + 1).clip(max=len(values) - 1)]
    exact = until[place] - rank <= np.finfo(np.float64).eps
    return np.unique(np.where(exact, (values[place] + above) / 2, values[place]))
