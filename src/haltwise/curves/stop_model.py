"""A learned rule that stops runs of one loop where another step is not worth its price."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import torch

from haltwise._core.errors import InputError, refusing_others, require
from haltwise._core.files import digest, load_tensors, save_tensors
from haltwise._core.seen import require_marks
from haltwise._core.settings import one_of, require_types
from haltwise.curves.curves import Curve, Floats
from haltwise.curves.features import FEATURES, tell_lacking
from haltwise.curves.forecast import Forecast
from haltwise.curves.model import not_early
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.last_improvement import LastImprovementRule
from haltwise.curves.rules.learned import ForecastRule
from haltwise.curves.rules.learners import WORTH

__all__ = ["StopCard", "StopModel"]

_FORMAT = 1


@final
@dataclass(frozen=True)
class StopCard:
    """All that the use of a stop model depends on beside its rule.

    Examples:
        >>> card = StopCard("loss", "epochs", price=0.01, budget=50.0, level=0.4)
        >>> StopCard.from_json(card.to_json()) == card
        True
    """

    metric: str
    """The column that was judged."""
    cost_unit: str
    """What cost was counted in."""
    price: float
    """What a unit of cost must gain, in units of the metric."""
    budget: float
    """The mean budget of the runs, taken for that of a run that has none."""
    level: float | None
    """A run is stopped at the first score below it; None where no run ever is."""
    direction: str = "min"
    """Whether lower or higher values of the metric were better."""
    saved: float = 0.0
    """By how much the mean cost of a run, loss and price of what it spent, was lower than where all
    went on to their end, in units of the metric; on groups that were not learned from."""
    standard_error: float = 0.0
    """That of `saved`, over runs."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """See `haltwise.curves.features.shares_beside`; empty where the metric alone is read."""
    num_runs: int = 0
    """Runs it was learned on."""
    num_groups: int = 0
    """Groups of these runs."""
    seen: str = field(default="", repr=False)
    """Marks of these runs, see `haltwise.curves.copies.marks_of_runs`; empty if they are not known,
    as of older files."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, for people. Nothing is decided by it."""

    def __post_init__(self) -> None:
        one_of("direction", self.direction, ("min", "max"))
        for name in ("price", "budget"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"the card's {name} must be above 0, got {value}")
        require_marks(self.seen)

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same card."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The card that `to_json` wrote; every value is checked.

        Raises:
            InputError: It is no card, of another format, or a value is impossible.
        """
        with refusing_others("this is not the card of a stop model", with_cause=True):
            given = dict(document)
            require(
                given.pop("format", None) == _FORMAT,
                "the card is of another format; learn again with this version",
            )
            require_types(cls.__init__, given)
            return cls(**given)


@final
class StopModel(CurveRule):
    """Stop a run at the first point at which another step is forecast not to be worth its price.

    The score is the chance that some later point is worth its cost, by boosted trees, or, where
    that was better on groups held out, the mean of the last improvements; both are infinite before
    a twentieth of the budget is spent. A level for the score is on the card.

    Args:
        rule: What scores a run, fitted.
        card: Its card.

    Examples:
        >>> from haltwise.curves.curves import Curves
        >>> card = StopCard("loss", "steps", price=0.01, budget=50.0, level=1.0)
        >>> model = StopModel(LastImprovementRule(0.01, 0.5), card)
        >>> curve = Curves.from_matrix([0.9 ** np.arange(50)])[0]
        >>> int(np.flatnonzero(model.score(curve) < card.level)[0])
        24
    """

    kind: ClassVar[str] = "stop model"
    """What its file says that it holds."""

    def __init__(self, rule: ForecastRule | LastImprovementRule, card: StopCard) -> None:
        self.rule, self.card = rule, card

    def __repr__(self) -> str:
        card = self.card
        return (
            f"StopModel({type(self.rule).__name__}, learned on {card.num_runs:,} runs of "
            f"{card.num_groups:,} groups, {card.metric} ({card.direction}) at a price of "
            f"{card.price:g} per {card.cost_unit}; saved {card.saved:.3g} +- "
            f"{card.standard_error:.2g} a run)"
        )

    @property
    def seen(self) -> str:
        return self.card.seen

    @property
    def fixed_level(self) -> float:
        """The card's level, -inf where nothing is ever stopped."""
        return -np.inf if self.card.level is None else self.card.level

    def require_unit(self, cost_unit: str | None) -> None:
        """Refuse costs in another unit than the price is of; None is taken for the card's.

        Raises:
            InputError: It is another.
        """
        require(
            cost_unit in (None, self.card.cost_unit),
            f"it was learned at a price per unit of {self.card.cost_unit}, but costs are counted "
            f"in {cost_unit}; name a column of {self.card.cost_unit}, or learn anew",
        )

    def score(self, curve: Curve) -> Floats:
        """The score at each point, infinite where the metric was not measured, shape [n].

        Raises:
            InputError: Another direction of the metric is better than where it was learned.

        Warns:
            FitWarning: A column is missing without which the model knows nothing.
        """
        known, seen = curve.is_measured, self._known(curve.measured())
        found = np.full(len(known), np.inf)
        if known.any():
            found[known] = self._told(seen, self.rule.score(seen))
        return found

    def last_score(self, curve: Curve) -> float:
        if np.isnan(curve.loss[-1]):
            return math.inf
        curve = self._known(curve.measured())
        score = np.array([self.rule.last_score(curve)])
        return float(self._told(curve, score)[0])

    def _known(self, curve: Curve) -> Curve:
        """The curve without its target, with the budget of the card where it has none."""
        card, curve = self.card, curve._replace(target=np.nan)
        require(
            curve.direction == card.direction,
            f"it was learned where the best {card.metric} is the {card.direction}, not the "
            f"{curve.direction}; give the direction it was learned with, or learn anew",
        )
        return curve if curve.budget > 0 else curve._replace(budget=card.budget)

    def _told(self, curve: Curve, score: Floats) -> Floats:
        """The score of the rule at the last points, where it may tell."""
        now = curve._replace(cost=curve.cost[-len(score) :])
        return tell_lacking(curve, self.card.beside, not_early(now, score))

    def why(self, curve: Curve) -> str:
        score, card = self.last_score(curve), self.card
        unit = f"per unit of {card.cost_unit}"
        if isinstance(self.rule, LastImprovementRule):
            return (
                f"the mean of the last gains is {score * card.price:.3g} {unit}, below "
                f"{self.fixed_level * card.price:.3g}, at which it pays to stop at a price of "
                f"{card.price:g}"
            )
        return (
            f"the chance that going on pays its price of {card.price:g} {unit} is forecast to be "
            f"{score:.2g}, below the level of {self.fixed_level:.2g}"
        )

    @property
    def digest(self) -> str:
        """A checksum of all that it decides by."""
        tensors, document = self._to_file()
        return digest(tensors, json.dumps(document, sort_keys=True))

    def _to_file(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors: dict[str, torch.Tensor] = {}
        if isinstance(self.rule, LastImprovementRule):
            rule: dict[str, Any] = {"name": "last-improvement", "memory": self.rule.memory}
        elif isinstance(self.rule.model, Forecast):
            arrays, document = self.rule.model.to_arrays()
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            rule = {"name": "forecast", "forecast": document}
        else:
            rule = {"name": "constant", "chance": self.rule.model}
        return tensors, {"kind": self.kind, "card": self.card.to_json(), "rule": rule}

    def save(self, path: Path, *, new: bool = False) -> None:
        """Write it to a safetensors file, atomically.

        Args:
            path: The file.
            new: Whether to refuse a file that is there already.

        Raises:
            InputError: The file cannot be written.
        """
        save_tensors(path, *self._to_file(), new=new)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The model of a file that `save` wrote.

        Raises:
            InputError: There is no such file, or it is corrupt or foreign.
        """
        tensors, document = load_tensors(path)
        require(document.get("kind") == cls.kind, f"{path} is no stop model")
        try:
            card = StopCard.from_json(document["card"])
            rule = _rule(document["rule"], tensors, card.price)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path} is no stop model: {error}") from None
        return cls(rule, card)


def _rule(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], price: float
) -> ForecastRule | LastImprovementRule:
    """The rule that a file tells of; every value is checked."""
    name = document["name"]
    one_of("rule", name, ("forecast", "constant", "last-improvement"))
    if name == "forecast":
        arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
        num = len(FEATURES) + len(WORTH)
        return ForecastRule(price, Forecast.from_arrays(arrays, document["forecast"], num))
    require(not tensors, f"a rule {name} has no trees")
    key = "chance" if name == "constant" else "memory"
    value = document[key]
    require(
        isinstance(value, float) and 0 <= value <= 1, f"{key} must lie in [0, 1], got {value!r}"
    )
    return ForecastRule(price, value) if name == "constant" else LastImprovementRule(price, value)
