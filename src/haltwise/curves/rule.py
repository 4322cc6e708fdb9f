"""The contract of a rule that gives runs up, by what their curves show."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from haltwise.curves.curves import Curve, Curves, Floats

__all__ = ["CurveRule"]


class CurveRule(ABC):
    """A score for each point of a curve: a run is given up at the first that lies below a level.

    A score may use nothing later than its point. The level is chosen apart, on runs that the rule
    has not seen (`haltwise.curves.levels`), so all rules are tuned alike.
    """

    fixed_level: ClassVar[float | None] = None
    """The level of a rule that leaves none to choose."""

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
