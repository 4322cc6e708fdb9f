"""The contract of a rule that gives runs up, by what their curves show."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from haltwise._core.checksum import checksum
from haltwise._core.errors import require
from haltwise.curves.curves import Curve, Curves, Floats, Integers

__all__ = ["CurveRule", "Scores", "checked_scores", "cross_fitted"]

Scores = list[Floats]
"""One score a point of each run."""


class CurveRule(ABC):
    """A score for each point of a curve: a run is given up at the first that lies below a level.

    A score may use nothing later than its point. The level is chosen apart, on runs that the rule
    has not seen (`haltwise.curves.levels`), so all rules are tuned alike.
    """

    highest_score: ClassVar[float] = math.inf
    """What no score but an infinite one exceeds; a higher level would end every run at once."""

    @property
    def digest(self) -> str:
        """A checksum of its settings and all that it has learned, by which a certificate knows it.

        Not of its code: who changes what `score` does certifies it anew.

        Raises:
            InputError: It holds something that cannot be taken apart, such as an open file.
        """
        return checksum(self)

    @property
    def seen(self) -> str:
        """Marks of the runs that it was learned on (`haltwise.curves.copies.marks_of_runs`).

        Empty where there are none, or none are kept: then nobody can tell who judges it by these.
        """
        return ""

    @property
    def fixed_level(self) -> float | None:
        """The level of a rule that leaves none to choose."""
        return None

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        """The settings to choose among on recorded runs; as the class is made, if no others.

        Args:
            price: Where runs stop early, what a unit of cost must gain, in units of the metric;
                None where they are given up.
        """
        del price
        return [cls()]

    def fit(self, curves: Curves) -> Self:
        """The rule after learning from recorded runs; a hand-made rule needs none."""
        del curves
        return self

    @abstractmethod
    def score(self, curve: Curve) -> Floats:
        """The score at each point of a curve, the lower the sooner it is given up; shape [n]."""

    def scores(self, curves: Curves) -> list[Floats]:
        """The score of every curve; a rule that works faster on many at once does so here."""
        return [self.score(curve) for curve in curves]

    def last_score(self, curve: Curve) -> float:
        """The score at the last point, `score(curve)[-1]`; overridden where others can be saved."""
        return float(self.score(curve)[-1])

    def why(self, curve: Curve) -> str:
        """Say in a sentence what the score at the last point of the curve stands for."""
        return f"the score is {self.score(curve)[-1]:.3g}"


def checked_scores(rule: CurveRule, curves: Curves) -> Scores:
    """The scores of a rule, which may be a stranger's, checked."""
    found = [np.asarray(score, float) for score in rule.scores(curves)]
    for score, num in zip(found, curves.num_points, strict=True):
        require(
            score.shape == (num,),
            f"{type(rule).__name__} scores {num} points by shape {list(score.shape)}; give one "
            "number a point",
        )
        require(
            not np.isnan(score).any(),
            f"{type(rule).__name__} scores a point by NaN; give inf where nothing can be told yet",
        )
    return found


def cross_fitted(rule: CurveRule, curves: Curves, fold: Integers) -> Scores:
    """Scores of each run by the rule fitted to the other folds."""
    found: Scores = [np.empty(0)] * curves.num_runs
    for number in range(fold.max() + 1):
        fitted = rule.fit(curves.select(fold != number))
        rest = np.flatnonzero(fold == number)
        for i, scores in zip(rest, checked_scores(fitted, curves.select(rest)), strict=True):
            found[i] = scores
    return found
