"""A learned rule that gives runs up, with its card: what it was learned on and what it may lose."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import torch

from haltwise._core.errors import InputError, refusing_others, require
from haltwise._core.files import digest, load_tensors, save_tensors
from haltwise._core.percent import in_percent
from haltwise._core.seen import require_marks
from haltwise._core.settings import price_per_unit, require_types
from haltwise.certificates import Certificate
from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.features import FEATURES, curve_features, has_diverged, tell_lacking
from haltwise.curves.forecast import Forecast
from haltwise.curves.rule import CurveRule

__all__ = ["CurveCard", "CurveModel", "Loss", "Range", "cost_scale", "not_early", "per_cost"]

_FORMAT = 1
_EARLIEST = 0.05  # of the budget, before which nothing is given up


@final
@dataclass(frozen=True)
class Range:
    """What most values of a feature lay between where a model was learned."""

    low: float
    high: float


@final
@dataclass(frozen=True)
class Loss:
    """A level, and what such levels did to runs of groups that they were not chosen on.

    Neither the forecast nor the level of a run had seen its group. Where groups differ, one that
    nobody has seen may lose more; for a bound that holds see `haltwise.certify`.
    """

    level: float
    """Runs whose score lies below it are given up."""
    saved: float
    """The share of all cost that was saved."""
    lost: float
    """The share of successes that was lost."""


@final
@dataclass(frozen=True)
class CurveCard:
    """All that the use of a curve model depends on beside its trees.

    Examples:
        >>> card = CurveCard(metric="loss", cost_unit="hours", cost_scale=2.0)
        >>> CurveCard.from_json(card.to_json()) == card
        True
    """

    metric: str
    """The column that was judged."""
    cost_unit: str
    """What cost was counted in."""
    cost_scale: float
    """The mean budget, in units of cost: by it levels, which are in chances per unit of cost, are
    translated for runs whose cost is counted in another unit."""
    direction: str = "min"
    """Whether lower or higher values of the metric were better."""
    levels: Mapping[str, Loss] = field(default_factory=dict)
    """By the share of successes that may be lost, as '0.01'."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Of each feature that was known, from its 0.5th to its 99.5th percentile."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """See `haltwise.curves.features.shares_beside`."""
    num_runs: int = 0
    """Runs it was learned on."""
    num_groups: int = 0
    """Groups of these runs."""
    seen: str = field(default="", repr=False)
    """Marks of these runs, see `haltwise.curves.copies.marks_of_runs`; empty if they are not known,
    as of older files."""
    certificates: tuple[Certificate, ...] = ()
    """Levels that keep a bound, each for these very trees; see `haltwise.curves.certify_curves`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, for people. Nothing is decided by it."""

    def __post_init__(self) -> None:
        require(
            0 < self.cost_scale < float("inf"),
            f"the card's cost_scale must be above 0 and finite, got {self.cost_scale}",
        )
        require_marks(self.seen)

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same card."""
        document = asdict(replace(self, certificates=()))
        document["certificates"] = [each.to_json() for each in self.certificates]
        return {"format": _FORMAT, **document}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The card that `to_json` wrote; every value is checked.

        Raises:
            InputError: It is no card, of another format, or a value is impossible.
        """
        with refusing_others("this is not the card of a curve model", with_cause=True):
            given = dict(document)
            require(
                given.pop("format", None) == _FORMAT,
                "the card is of another format; learn again with this version",
            )
            for name, kind in (("levels", Loss), ("ranges", Range)):
                entries = {str(key): dict(value) for key, value in given[name].items()}
                for entry in entries.values():
                    require_types(kind.__init__, entry)
                given[name] = {key: kind(**entry) for key, entry in entries.items()}
            given["certificates"] = tuple(
                Certificate.from_json(each) for each in given.get("certificates", ())
            )
            typed = ("levels", "ranges", "certificates")
            plain = {key: value for key, value in given.items() if key not in typed}
            require_types(cls.__init__, plain)
            return cls(**given)


@final
class CurveModel(CurveRule):
    """Give a run up where its chance of success is not worth what it would still spend.

    With a success worth 1 and a unit of cost worth the price, letting a run go on to its end is
    worth chance - price * (cost to come). A run that fails spends all its budget, one that
    succeeds half of what is left on average, so the cost to come is left * (1 - chance / 2), and
    the run is given up where chance / (cost to come) < price (docs/theory.md, Eq. (give-up)).
    So one forecast serves all prices, and the share of successes that one is ready to lose is
    another way to name a price.

    Args:
        forecast: The chances.
        card: Its card.

    Examples:
        >>> from haltwise.curves.learning import learn
        >>> rng = np.random.default_rng(0)
        >>> ends = rng.uniform(0.2, 2.0, 60)  # a run of 30 steps falls from 3 towards its end
        >>> losses = ends[:, None] + (3 - ends[:, None]) * 0.9 ** np.arange(30)
        >>> groups = [str(i % 2) for i in range(60)]
        >>> model = learn(Curves.from_matrix(losses, target=1.0, group=groups)).model
        >>> hopeless = Curves.from_matrix([2 + 0.9 ** np.arange(10)], target=1.0, budget=29.0)[0]
        >>> bool(model.chance(hopeless)[-1] < 0.1)
        True
    """

    kind: ClassVar[str] = "curve model"
    """What its file says that it holds."""

    def __init__(self, forecast: Forecast, card: CurveCard) -> None:
        self.forecast, self.card = forecast, card

    def __repr__(self) -> str:
        card = self.card
        levels = ", ".join(in_percent(float(lost)) for lost in card.levels)
        return (
            f"CurveModel(learned on {card.num_runs:,} runs of {card.num_groups:,} groups, "
            f"{card.metric} ({card.direction}) per {card.cost_unit}; levels that lost "
            f"{levels or 'nothing known'} of the successes)"
        )

    @property
    def seen(self) -> str:
        return self.card.seen

    @property
    def digest(self) -> str:
        """A checksum of the trees, by which a certificate knows them."""
        arrays, document = self.forecast.to_arrays()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return digest(tensors, json.dumps(document, sort_keys=True))

    def chance(self, curve: Curve) -> Floats:
        """The probability at each point that the run meets its target in its budget, shape [n].

        Where the metric was not measured the last one stands, and 1 where it never was.

        Raises:
            InputError: The curve has no target or no budget.
        """
        measured = self._chance(self._features(curve.measured()))
        chance: Floats = np.append(1.0, measured)[np.cumsum(curve.is_measured)]
        return chance

    def last_chance(self, curve: Curve) -> float:
        """The chance at the last point, `chance(curve)[-1]`, in less time.

        Raises:
            InputError: The curve has no target or no budget.
        """
        return float(np.append(1.0, self._chance(self._features(curve.measured(), last=1)))[-1])

    def _chance(self, features: Floats) -> Floats:
        """The forecast's chances; none where nothing finite was measured for long."""
        chance: Floats = np.where(has_diverged(features), 0.0, self.forecast.chance(features))
        return chance

    def _features(self, curve: Curve, last: int | None = None) -> Floats:
        require(
            bool(np.isfinite(curve.target)),
            "this run has no target, so there is no success to forecast; give it one, such as "
            "the median of what its peers reached (Curves.targets_among_peers)",
        )
        require(
            0 < curve.budget < np.inf,
            "a run needs a budget above 0 to forecast what it will reach, got "
            f"{curve.budget:g}; give it one (budget=), in the unit of its cost",
        )
        return curve_features(curve, last)

    def score(self, curve: Curve) -> Floats:
        """The chance per unit of the cost to come at each point, shape [n]; see the class.

        It is infinite where the metric was not measured, so that nothing new is known of the run.

        Warns:
            FitWarning: A column is missing without which the model knows nothing.
        """
        return self.score_of(curve, self.chance(curve))

    def score_of(self, curve: Curve, chance: Floats) -> Floats:
        """The score by chances that are known already, shape [n]."""
        score = np.where(curve.is_measured, per_cost(curve, chance), np.inf)
        return tell_lacking(curve, self.card.beside, score)

    def last_score(self, curve: Curve) -> float:
        if np.isnan(curve.loss[-1]):
            return np.inf
        chance = np.array([self.last_chance(curve)])
        score = per_cost(curve._replace(cost=curve.cost[-1:]), chance)
        return float(tell_lacking(curve, self.card.beside, score)[0])

    def why(self, curve: Curve) -> str:
        chance = self.last_chance(curve)
        left = max(curve.budget - curve.cost[-1], 0.0)
        unusual = self.unusual(curve)
        beyond = f"; beyond what it was learned on: {', '.join(unusual)}" if unusual else ""
        return (
            f"its chance to reach {curve.target:g} is forecast to be {chance:.2g}, which does not "
            f"pay for the {left:.3g} that are left of its budget of {curve.budget:.3g}{beyond}"
        )

    def level(
        self, *, lost: float | None = None, price: float | None = None, scale: float | None = None
    ) -> float:
        """The level below which the score of a run gives it up.

        Args:
            lost: The share of successes that may be lost, one of the card's.
            price: (value of a unit of cost) / (value of a success) instead.
            scale: The mean budget of the runs at hand where their cost is not counted in the
                card's unit; levels learned elsewhere are translated by it.

        Raises:
            InputError: Neither or both are given, or the card has no such level.
        """
        require(
            (lost is None) != (price is None),
            "say how many successes may be lost (lost=) or what a unit of cost is worth (price=)",
        )
        if price is not None:
            return price_per_unit(price)
        found = self.card.levels.get(f"{lost:g}")
        require(
            found is not None,
            f"the card has no level for a share of {lost:g} of the successes, but for "
            + ", ".join(self.card.levels),
        )
        assert found is not None
        return found.level * (self.card.cost_scale / scale if scale is not None else 1.0)

    def unusual(self, curve: Curve) -> tuple[str, ...]:
        """Features whose value at the last point lies beyond what the model was learned on."""
        return tuple(
            name
            for last in curve_features(curve.measured(), last=1)  # none where nothing is known
            for name, value in zip(FEATURES, last, strict=True)
            if name in self.card.ranges
            and not np.isnan(value)
            and not self.card.ranges[name].low <= value <= self.card.ranges[name].high
        )

    def save(self, path: Path, *, new: bool = False) -> None:
        """Write it to a safetensors file, atomically.

        Args:
            path: The file.
            new: Whether to refuse a file that is there already.

        Raises:
            InputError: The file cannot be written.
        """
        arrays, document = self.forecast.to_arrays()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        metadata = {"kind": self.kind, "card": self.card.to_json(), "forecast": document}
        save_tensors(path, tensors, metadata, new=new)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The model of a file that `save` wrote.

        Raises:
            InputError: There is no such file, or it is corrupt or foreign.
        """
        tensors, document = load_tensors(path)
        require(document.get("kind") == cls.kind, f"{path} is no curve model")
        try:
            card = CurveCard.from_json(document["card"])
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            model = cls(Forecast.from_arrays(arrays, document["forecast"]), card)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path} is no curve model: {error}") from None
        require(
            all(each.model == model.digest for each in card.certificates),
            f"{path} has a certificate of other trees; certify these with haltwise judge --certify",
        )
        return model


def per_cost(curve: Curve, chance: Floats) -> Floats:
    """The chance per unit of the cost to come, shape [n].

    It is infinite where nothing is left to spend, and before a twentieth of the budget is spent: of
    many noisy scores the lowest counts, and the first are the noisiest (measured on AlgoPerf).
    """
    left = np.maximum(curve.budget - curve.cost, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(left > 0, chance / (left * (1 - chance / 2)), np.inf)
    return not_early(curve, score)


def not_early(curve: Curve, score: Floats) -> Floats:
    """The score, infinite before a twentieth of the budget is spent."""
    return np.where(curve.cost < _EARLIEST * curve.budget, np.inf, score)


def cost_scale(curves: Curves) -> float:
    """The mean budget of runs."""
    return float(np.mean(curves.budget))
