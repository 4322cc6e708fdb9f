"""Somebody's own stops on their own runs, as a domain: every rule is judged beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from haltwise._core.arrays import array_names, read_arrays
from haltwise._core.errors import require
from haltwise._core.settings import price_per_unit
from haltwise.bench.domain import Domain, Sample
from haltwise.curves.curves import Curves, Direction, Floats, Integers

__all__ = ["ARRAYS", "GivenDomain"]

_NEEDED = ("losses", "stops")
ARRAYS = (*_NEEDED, "price", "costs", "groups")


@final
@dataclass(frozen=True)
class GivenDomain(Domain):
    """Runs and stops in an .npz file.

    Its arrays: `losses` [n, T+1], NaN where a run had ended; `stops` [n], the point 0..T at which
    each run is stopped. Optional: `price`, of a unit of cost, in units of the loss, if it is not
    given elsewhere; `costs` [T+1] or [n, T+1], steps if missing; `groups` [n], runs of which are
    alike.
    """

    path: Path
    price: float | None = None
    """Of a unit of cost, in units of the loss; that of the file if None."""
    direction: Direction = "min"
    """Whether lower or higher is better of what the file calls losses."""
    title: ClassVar[str] = "stops that were given"

    def curves(self, sample: Sample) -> Curves:
        """All of the runs: somebody's stops are judged on what they were made for."""
        del sample
        arrays = read_arrays(self.path, (*_NEEDED, "costs", "groups"))
        missing = [name for name in _NEEDED if name not in arrays]
        require(
            not missing,
            f"{self.path} has no array {' and no '.join(missing)}; write losses [n, T+1] and stops "
            "[n] with numpy.savez",
        )
        num = len(np.atleast_1d(arrays["losses"]))
        stops = arrays["stops"]
        require(
            stops.shape == (num,) and stops.dtype.kind in "iu",
            f"stops must be {num} integers, one a run, got {stops.dtype} {list(stops.shape)}",
        )
        groups = arrays.get("groups", np.arange(num))
        require(
            groups.shape == (num,), f"groups must be one a run, [{num}], got {list(groups.shape)}"
        )
        curves = Curves.from_matrix(
            arrays["losses"],
            arrays.get("costs"),
            group=[str(group) for group in groups],
            direction=self.direction,
        )
        ends = dict(zip(curves.name.tolist(), curves.num_points.tolist(), strict=True))
        merged = [name for name, end in ends.items() if end != _length(arrays["losses"][int(name)])]
        require(
            not merged,
            f"costs must rise from each point to the next, or stops would count other points; run "
            f"{merged[:1]} has points of one cost, or of none",
        )
        wrong = [i for i, stop in enumerate(stops) if not 0 <= stop < ends.get(str(i), stop + 1)]
        require(
            not wrong,
            f"stops must lie between 0 and the last point of their run; run {wrong[0]} stops at "
            f"{stops[wrong[0]]}"
            if wrong
            else "",
        )
        return curves

    def unused(self) -> list[str]:
        """Arrays in the file that nothing is done with, such as those whose name is misspelt."""
        return [name for name in array_names(self.path) if name not in ARRAYS]

    def prices(self, curves: Curves) -> tuple[float, ...] | None:
        """The one price, of a whole budget in typical gains."""
        return (self.given_price() * float(curves.budget[0]) / self.unit(curves),)

    def unit(self, curves: Curves) -> float:
        """The typical gain, or the mean gain where half of the runs gain nothing."""
        usable = np.isfinite(curves.values[curves.offset[:-1], 0]) & (curves.num_points >= 2)
        require(bool(usable.any()), f"no run in {self.path} has two points and a finite first loss")
        gains = [run.loss[0] - np.nanmin(run.loss) for run in curves.select(usable)]
        require(
            max(gains) > 0,
            f"no run in {self.path} gains anything, so nothing can be lost by stopping at once; if "
            "higher is better, say so (--direction max)",
        )
        return float(np.median(gains) or np.mean(gains))

    def given_price(self) -> float:
        """The price that is given, or else that of the file."""
        found = read_arrays(self.path, ("price",)).get("price", self.price)
        given = found if self.price is None else self.price
        require(given is not None, f"{self.path} has no array price; give the price (--price)")
        return price_per_unit(given)

    def worsens(self) -> bool:
        """Whether most runs end worse than they start, as if another direction were better."""
        losses = [curve.loss for curve in self.curves(Sample(0, 0))]
        return sum(bool(loss[-1] > loss[0]) for loss in losses) > len(losses) / 2

    def stops(self, curves: Curves) -> Integers | None:
        given = read_arrays(self.path, ("stops",))["stops"]
        return np.array([given[int(name)] for name in curves.name], np.int64)


def _length(losses: Floats) -> int:
    """Points of a run: all up to its last loss that is no NaN."""
    return int(np.flatnonzero(~np.isnan(losses)).max(initial=-1)) + 1
