"""The scales of the problems that a model was trained on: by these its units are recognised."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import ZERO, quantiles, widened
from haltwise.processes.signals import SIGNALS, is_flat
from haltwise.processes.trajectory import Trajectory

__all__ = ["Course", "FirstSteps", "Likeness", "Scales", "UsualRange"]

_TAIL = 0.001  # of the problems on either side are left out of a spread
_STRANGE = 0.01  # of the problems in training are called strange
_RIDGE = 1e-3
_FEWEST = 500  # problems to judge others by
_FAR = 1.5  # a factor of 4.5 beyond a range, which no problem in training comes near
_STRANGER = 10.0  # times the limit of a course, likewise
_NOTHING = 1e-6  # prices, so little to gain that it does not matter how much


@final
@dataclass(frozen=True)
class UsualRange:
    """Where a quantity lay in training: its median and the range of all but one in 500."""

    low: float
    middle: float
    high: float

    def holds(self, values: Tensor, margin: float) -> Tensor:
        """Which of the values lie in the range, or no further than `margin` from it."""
        return (values >= self.low - margin) & (values <= self.high + margin)

    def __post_init__(self) -> None:
        require(
            -math.inf < self.low <= self.middle <= self.high < math.inf,
            f"a spread must be three finite numbers in order, got {self.low}, {self.middle} and "
            f"{self.high}",
        )

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """That of the finite values [n]; there must be some."""
        finite = widened(values[values.isfinite()])
        require(len(finite) > 0, "no finite value to take a spread of")
        return cls(*quantiles(finite[: 2**23], _TAIL, 0.5, 1 - _TAIL))


class FirstSteps(NamedTuple):
    """What the first two observations tell of a problem's scale; natural logarithms, each [B].

    With gamma_0 and gamma_1 the gradients seen, g_0 the first update and kappa the curvature along
    it, `<gamma_1 - gamma_0, g_0> / |g_0|^2`. If parameters are S times and losses K times as
    large, the gradient is K / S times as large, so the `grad` shifts by log K - log S, the `length`
    by -log S where the first update stays as it is, and the `gain` by log K.

    Attributes:
        grad: Root mean square of gamma_0.
        length: `|g_0| kappa / |gamma_0|`, the first step beside that of least loss, by Cauchy.
        gain: `|gamma_1|^2 / (2 kappa)`, what the next such step would gain.
        is_known: Whether the loss is convex along the first step, so that the last two mean
            anything, bool.
    """

    grad: Tensor
    length: Tensor
    gain: Tensor
    is_known: Tensor

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Self:
        """From the signals of steps 0 and 1, each [B, S]."""
        before = dict(zip(SIGNALS, first.unbind(-1), strict=True))
        after = dict(zip(SIGNALS, second.unbind(-1), strict=True))
        length = before["log_update"] + after["log_curvature"] - before["log_grad"]
        gain = after["most_gain"].log()
        known = ~is_flat(after["log_curvature"]) & length.isfinite() & gain.isfinite()
        return cls(before["log_grad"], length, gain, known)


class Course(NamedTuple):
    """What the way of a problem to its stop looked like, in the model's units.

    Attributes:
        first, second, last: Signals of steps 0, 1 and of the stop, each [B, S].
        lowest: The lowest loss up to the stop, shape [B].
    """

    first: Tensor
    second: Tensor
    last: Tensor
    lowest: Tensor

    def features(self, price: Tensor, dim: int) -> Tensor:
        """Logarithms by which strange ones are told from those seen in training, [B, 11], float64.

        Those of `FirstSteps`; by what factors gradient, update and curvature have changed; steps
        taken; the price [B]; what was gained and what is left to gain, in prices. What grows with
        the number of parameters is counted for each of the `dim`. NaN where the first step finds no
        curvature.
        """
        before, after, now = (
            dict(zip(SIGNALS, widened(signals).unbind(-1), strict=True)) for signals in self[:3]
        )
        begun = FirstSteps.of(widened(self.first), widened(self.second))

        def in_prices(gain: Tensor) -> Tensor:
            return (gain / price).clamp_min(_NOTHING).log() - math.log(dim)

        values = (
            begun.grad,
            begun.length,
            begun.gain - math.log(dim),
            now["log_grad"] - before["log_grad"],
            now["log_update"] - before["log_update"],
            now["log_curvature"] - after["log_curvature"],
            now["step"].log1p(),
            widened(price).log(),
            in_prices(before["loss"] - widened(self.lowest)),
            in_prices(now["least_gain"]),
            in_prices(now["most_gain"]),
        )
        return torch.where(begun.is_known.unsqueeze(1), torch.stack(values, 1), torch.nan)


@final
@dataclass(frozen=True)
class Likeness:
    """By which a course is told from those seen in training: its Mahalanobis distance."""

    middle: tuple[float, ...]
    """The median of `Course.features`."""
    precision: tuple[tuple[float, ...], ...]
    """The inverse of their covariance."""
    limit: float
    """The squared distance that all but one in 100 problems stay below."""

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """That of features [n, 11], NaN where unknown."""
        known = features[features.isfinite().all(1)]
        # The limit is that of other problems than those that the covariance was fitted to.
        fitted, others = known[::2], known[1::2]
        middle = fitted.median(0).values
        covariance = torch.cov(fitted.T)
        # Some features of some rules follow from others; rounding must not count.
        covariance += _RIDGE * covariance.diagonal().clamp_min(_RIDGE).diag()
        precision = torch.linalg.inv(covariance)
        blank = cls(tuple(middle.tolist()), tuple(map(tuple, precision.tolist())), 0.0)
        (limit,) = quantiles(blank._distance(others)[: 2**23], 1 - _STRANGE)
        return replace(blank, limit=limit)

    def is_foreign(self, features: Tensor) -> Tensor:
        """Which are so far from those seen that a single one tells, bool [B]."""
        return self._distance(features) > _STRANGER * self.limit

    def is_strange(self, features: Tensor) -> Tensor:
        """Which of the courses with these features [B, 11] are not like those seen, bool [B]."""
        return ~(self._distance(features) <= self.limit)  # true where a feature is unknown

    def _distance(self, features: Tensor) -> Tensor:
        away = features - features.new_tensor(self.middle)
        return torch.einsum("bi,ij,bj->b", away, features.new_tensor(self.precision), away)


@final
@dataclass(frozen=True)
class Scales:
    """What a model remembers of the problems it was trained on; see `FirstSteps`."""

    grad: UsualRange
    length: UsualRange
    gain: UsualRange
    courses: Likeness
    """Of the way to the stops of the calibrated policy at the prices trained on."""
    longest_wait: int
    """Steps without a new lowest loss, before a calibrated stop, that all but one in 1,000
    problems stay below."""

    def __post_init__(self) -> None:
        require(self.longest_wait >= 0, f"longest_wait must be at least 0, got {self.longest_wait}")

    @classmethod
    def of(cls, trajectory: Trajectory, stops: Tensor, price: Tensor, dim: int) -> Self | None:
        """Those of n recorded problems of `dim` parameters.

        Args:
            trajectory: The problems.
            stops: Where the calibrated policy stops each, int64 [n].
            price: At which price it does, spread over the prices trained on, shape [n].
            dim: D.

        Returns:
            None where they are unknown: nothing shows gradients, or hardly a first step finds
            curvature.
        """
        if trajectory.log_grad_norm is None or trajectory.num_steps < 2:
            return None
        signals = trajectory.known("signals")
        seen = FirstSteps.of(signals[:, 0], signals[:, 1])
        late = (seen.is_known & (stops > 0)).nonzero().squeeze(1)
        if len(late) < _FEWEST:
            return None
        at = stops[late].clamp_max(trajectory.num_steps - 1)
        lowest = trajectory.loss.cummin(1).values[late, at]
        course = Course(signals[late, 0], signals[late, 1], signals[late, at], lowest)
        return cls(
            UsualRange.of(seen.grad),
            UsualRange.of(seen.length[seen.is_known]),
            UsualRange.of(seen.gain[seen.is_known]),
            Likeness.of(course.features(price[late], dim)),
            _longest_wait(trajectory.loss, stops),
        )

    def is_foreign(self, first: Tensor, second: Tensor) -> Tensor:
        """Which problems lie far outside the ranges in training, so that a single one tells.

        Args:
            first: Signals of step 0 in the units of the model, shape [B, S].
            second: Those of step 1.

        Returns:
            bool [B]; never where there is no gradient, since nothing is to be done there.
        """
        seen = FirstSteps.of(first, second)
        fits = self.grad.holds(seen.grad, _FAR) | (seen.grad <= ZERO)
        for usual, values in ((self.length, seen.length), (self.gain, seen.gain)):
            fits &= usual.holds(values, _FAR) | ~seen.is_known
        return ~fits

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The scales of a JSON object that a card wrote.

        Raises:
            InputError: A value is impossible.
        """
        spreads = {name: UsualRange(**document[name]) for name in ("grad", "length", "gain")}
        courses = document["courses"]
        likeness = Likeness(
            tuple(courses["middle"]), tuple(map(tuple, courses["precision"])), courses["limit"]
        )
        return cls(**spreads, courses=likeness, longest_wait=document["longest_wait"])


def _longest_wait(losses: Tensor, stops: Tensor) -> int:
    steps = torch.arange(losses.shape[1], device=losses.device).expand_as(losses)
    lowest = losses.cummin(1).values
    improves = torch.ones_like(losses, dtype=torch.bool)
    improves[:, 1:] = losses[:, 1:] < lowest[:, :-1]
    waited = steps - torch.where(improves, steps, 0).cummax(1).values
    waited = torch.where(steps <= stops.unsqueeze(1), waited, 0).amax(1)
    return math.ceil(*quantiles(widened(waited)[: 2**23], 1 - _TAIL))
