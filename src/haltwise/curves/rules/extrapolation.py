"""Extrapolated curves a + b phi(t), fitted to what is known at each point by least squares."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from haltwise.curves.curves import Curve, Floats, Integers
from haltwise.curves.progress import best_so_far, relative, share_spent
from haltwise.curves.rule import CurveRule

__all__ = ["ExtrapolationRule", "Fits", "fit_prefixes"]

_FEWEST = 3  # points to fit two coefficients and an exponent to
_AHEAD: Floats = np.array([0.0625, 0.125, 0.25, 0.5, 1.0])  # of what is left, to look at

Shape = Callable[[Floats], Floats]
"""Of a curve: a function of the share of the budget that falls to a limit."""


class Fits(NamedTuple):
    """The best of several shapes at each of n points.

    Attributes:
        level: a, shape [n], NaN where too little is known.
        size: b, at least 0, shape [n].
        shape: Which of the shapes, int64 [n].
    """

    level: Floats
    size: Floats
    shape: Integers


def fit_prefixes(time: Floats, loss: Floats, shapes: Sequence[Shape], tail: float) -> Fits:
    """Fit a + b phi(t) to the last part of each prefix of a curve; O(n) for all of them.

    A fit that rises, or that cannot be made, is a flat one: b = 0 and a is the mean.

    Args:
        time: Of n points, shape [n].
        loss: There, NaN where it is not known, shape [n].
        shapes: phi, of which the one of least squared error is taken.
        tail: The share of a prefix' points that are fitted.
    """
    ends = np.arange(1, len(loss) + 1)
    begins = ends - np.maximum(np.ceil(tail * ends).astype(int), np.minimum(ends, _FEWEST))
    found: list[Fits] = []
    pivot = 0
    while pivot < len(loss):
        last = int(np.searchsorted(begins, pivot, side="right"))  # of which a window holds it
        first = begins[pivot]
        windows = _Windows(begins[pivot:last] - first, ends[pivot:last] - first, pivot - first)
        part = slice(first, last)
        with np.errstate(over="ignore", invalid="ignore"):  # no fit is made where squares overflow
            found.append(_fit(time[part], loss[part], shapes, windows))
        pivot = last
    none = np.empty(0)
    return Fits(*map(np.concatenate, zip((none, none, none.astype(int)), *found, strict=True)))


class _Windows(NamedTuple):
    """Parts of a curve, from `begins` to before `ends`, that all hold the point `pivot`.

    The pivots of windows that move along a curve are few. Sums from a pivot forward and back have
    the rounding of what a window holds alone, while differences of sums over the whole curve have
    that of all that came before, where phi and the loss were larger by many orders.
    """

    begins: Integers
    ends: Integers
    pivot: int

    def total(self, values: Floats) -> Floats:
        """The sum over each window of what each point has; the first window begins at 0."""
        forward = np.cumsum(values[self.pivot :])
        back = np.append(np.cumsum(values[: self.pivot][::-1])[::-1], 0.0)
        every: Floats = forward[self.ends - 1 - self.pivot] + back[self.begins]
        return every


def _fit(time: Floats, loss: Floats, shapes: Sequence[Shape], windows: _Windows) -> Fits:
    """The best of several shapes in each of several windows, which make up the points given."""
    known = np.isfinite(loss)
    # The last that is known at the pivot, else the first after it: later than no window with one.
    held = np.count_nonzero(known[: windows.pivot + 1])
    near = np.flatnonzero(known)[max(held - 1, 0) :][:1]
    shift = loss[near].sum()  # 0 where none is known

    def total(values: Floats) -> Floats:
        return windows.total(np.where(known, values, 0.0))

    y = np.where(known, loss - shift, 0.0)
    count, sum_y, sum_yy = total(np.ones(len(y))), total(y), total(y * y)
    enough = count >= _FEWEST
    safe = np.maximum(count, 1)
    level, size = sum_y / safe, np.zeros(len(safe))
    flat = error = sum_yy - sum_y**2 / safe
    shape = np.zeros(len(safe), int)
    for place, phi in enumerate(shapes):
        x = phi(time)
        sum_x, sum_xx, sum_xy = total(x), total(x * x), total(x * y)
        spread = sum_xx - sum_x**2 / safe
        wide = spread > 1e-12 * sum_xx
        slope = np.where(wide, sum_xy - sum_x * sum_y / safe, 0.0) / np.where(wide, spread, 1.0)
        left = flat - slope**2 * spread
        better = enough & (slope > 0) & (left < error)
        error = np.where(better, left, error)
        size = np.where(better, slope, size)
        level = np.where(better, (sum_y - slope * sum_x) / safe, level)
        shape = np.where(better, place, shape)
    return Fits(np.where(enough, level + shift, np.nan), size, shape)


@dataclass(frozen=True)
class ExtrapolationRule(CurveRule):
    """The score is what the extrapolated curve promises, inf where it is not known yet.

    To give runs up, without a price, it is the share of the way to the target that will be left at
    the end of the budget, negative. Else the most that going on gains, its price paid.
    """

    price: float | None = None
    """What a unit of cost must gain, in units of the metric; None to give runs up."""
    tail: float = 1.0
    """The share of the points that are fitted, the last ones."""

    @property
    @abstractmethod
    def shapes(self) -> Sequence[Shape]:
        """See `fit_prefixes`."""

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls(price, tail) for tail in (1.0, 0.5, 0.25)]

    def score(self, curve: Curve) -> Floats:
        price, time = self.price, share_spent(curve)
        loss = relative(curve) if price is None else curve.loss
        best = best_so_far(loss)
        fits = fit_prefixes(time, loss, self.shapes, self.tail)

        def forecast(when: Floats) -> Floats:
            """The lowest loss by then, shape [n]."""
            ahead = np.choose(fits.shape, [phi(when) for phi in self.shapes])
            lowest: Floats = np.minimum(fits.level + fits.size * ahead, best)
            return lowest

        score: Floats
        if price is None:
            score = -forecast(np.ones(len(time)))
        else:
            unit = curve.cost[-1:] / time[-1:] if len(time) and time[-1] > 0 else np.ones(1)
            left = (1 - time).clip(0)
            later = [
                best - forecast(time + part * left) - price * unit * part * left for part in _AHEAD
            ]
            score = np.max(later, 0)
        return np.where(np.isnan(fits.level), np.inf, score)
