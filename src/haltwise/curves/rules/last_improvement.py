"""Stop a run as soon as the last improvement was below its price."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self, final

import numpy as np

from haltwise._core.settings import price_per_unit
from haltwise.curves.curves import Curve, Floats
from haltwise.curves.progress import relative, share_spent
from haltwise.curves.rule import CurveRule

__all__ = ["LastImprovementRule", "UntunedImprovementRule"]

_FAR = 1e9  # of a rate; what is beyond has no mean with others


def _rate(curve: Curve, price: float | None) -> Floats:
    """The last improvement in prices of what it cost; without a price in ways per budget."""
    if price is None:
        loss, cost = relative(curve), share_spent(curve)
    else:
        loss, cost = curve.loss / price, curve.cost
    rate = np.full(len(loss), np.inf)
    with np.errstate(invalid="ignore"):
        gain = loss[:-1] - loss[1:]
    # From or to a loss that is not known nothing is gained, nor where a run comes back that had
    # diverged; where it diverges, all is lost.
    gain = np.nan_to_num(gain, nan=0.0, posinf=0.0, neginf=-_FAR)
    rate[1:] = gain / np.diff(cost)
    return rate


def _require_price(rule: Any) -> None:
    if rule.price is not None:
        price_per_unit(rule.price)


@final
@dataclass(frozen=True)
class LastImprovementRule(CurveRule):
    """The score is the mean of the last improvements, weighted exponentially, per price."""

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    memory: float = 0.0
    """The weight of the mean so far against that of the last improvement."""

    def __post_init__(self) -> None:
        _require_price(self)

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(price, memory) for memory in (0.0, 0.5, 0.8)]

    def score(self, curve: Curve) -> Floats:
        rate = _rate(curve, self.price)
        rate[1:] = np.clip(rate[1:], -_FAR, _FAR)
        latest = rate[1:].tolist()
        rate[1:] = [*accumulate(latest, lambda mean, new: mean + (1 - self.memory) * (new - mean))]
        return rate


@final
@dataclass(frozen=True)
class UntunedImprovementRule(CurveRule):
    """Stop at the first improvement that was not worth its price: there is nothing to tune."""

    price: float | None = None
    """What a unit of cost must gain, in units of the metric."""

    def __post_init__(self) -> None:
        _require_price(self)

    @property
    def fixed_level(self) -> float:
        return 1.0

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        """None to give runs up, where nothing says what an improvement is worth."""
        return [] if price is None else [cls(price)]

    def score(self, curve: Curve) -> Floats:
        return _rate(curve, self.price)

    def last_score(self, curve: Curve) -> float:
        # Without a price improvements are told by the way from the start.
        seen = curve if self.price is None else curve.since(curve.num_points - 2)
        return float(self.score(seen)[-1])

    def why(self, curve: Curve) -> str:
        if self.price is None:
            return super().why(curve)
        if not np.isfinite(curve.loss[-1]):
            return "the last metric is not finite"
        gain = self.price * self.score(curve)[-1]
        if gain < 0:
            return f"nothing was gained: the last point is worse by {-gain:.3g} per unit of cost"
        return f"the last gain was {gain:.3g} per unit of cost, below its price of {self.price:g}"


CURVE_RULES = {
    "last-improvement": LastImprovementRule,
    "last-improvement-untuned": UntunedImprovementRule,
}
