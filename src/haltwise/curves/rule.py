"""The contract of a rule that gives runs up, by what their curves show."""

from abc import ABC, abstractmethod
from typing import Self

from haltwise.curves.curves import Curve, Curves, Floats

__all__ = ["CurveRule"]


class CurveRule(ABC):
    """A score for each point of a curve: a run is given up at the first that lies below a level.

    A score may use nothing later than its point. The level is chosen apart, on runs that the rule
    has not seen (`haltwise.curves.levels`), so all rules are tuned alike.
    """

    def fit(self, curves: Curves) -> Self:
        """The rule after learning from recorded runs; a hand-made rule needs none."""
        del curves
        return self

    @abstractmethod
    def score(self, curve: Curve) -> Floats:
        """The score at each point of a curve, the lower the sooner it is given up; shape [n]."""

    def why(self, curve: Curve) -> str:
        """Say in a sentence what the score at the last point of the curve stands for."""
        return f"the score is {self.score(curve)[-1]:.3g}"
