"""The card of a halting model: all that its use depends on beside its weights, typed."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, final

from haltwise._core.errors import refusing_others, require
from haltwise._core.nested_settings import Choice
from haltwise._core.plugins import label
from haltwise._core.seen import require_marks
from haltwise._core.settings import require_types
from haltwise.certificates.certificate import Certificate
from haltwise.halting.halter import HalterSettings
from haltwise.models.first_rounds import FirstRounds
from haltwise.models.scales import Scales
from haltwise.processes.observation import Observed
from haltwise.stop_rules import CostUnit, StopPolicy
from haltwise.stop_rules.documents import policy_from_json, policy_to_json

__all__ = ["Card", "Choice"]

_MOST_READ_OUT = 2**16
_FORMAT = 4
_WITHOUT_CERTIFICATES = 3  # the format before, otherwise equal


@final
@dataclass(frozen=True)
class Card:
    """The make of a halting model, the setting it was trained for, and its stop policies.

    Examples:
        >>> card = Card(method=Choice("stick-breaking"), price=0.1, horizon=40)
        >>> Card.from_json(card.to_json()) == card
        True
    """

    method: Choice
    """The halting method."""
    price: float
    """c, the price of a step that it was trained for, in units of the loss."""
    horizon: int
    """T, the steps of the trajectories it was trained on."""
    rule: Choice | None = None
    """The update rule; None for a model that only stops."""
    engine: Choice | None = None
    """The engine of `haltwise.solve` that it stops, or the update rule that is run as one; None for
    any other model."""
    halter: HalterSettings = field(default_factory=HalterSettings)
    """The shape of the halter."""
    price_range: float = 1.0
    """Prices from price / price_range to price * price_range were seen in training."""
    policies: Mapping[CostUnit, StopPolicy] = field(default_factory=dict)
    """Calibrated policies; where a unit is missing, training was interrupted before."""
    certificates: tuple[Certificate, ...] = ()
    """What is certified of these policies; see `haltwise.models.files.certified`."""
    unit: CostUnit = CostUnit.GRADIENTS
    """What the host pays for: a recorded loop counts its rounds as updates."""
    observed: Observed = "gradients"
    """What was observed of the process; a host must show as much."""
    readout_size: int = 0
    """R, how many numbers a process without an update rule shows of its inner state."""
    keeps_best: bool = False
    """Whether the recorded loop goes back to its best state at the end."""
    maximizes: bool = False
    """Whether the recorded loop has a metric that is better the higher it is; its negative is the
    loss."""
    family: Choice | None = None
    """The family of problems it was trained on; None for recorded runs."""
    scales: Scales | None = None
    """The scales of these problems, by which the units of others are recognised; None where
    training was interrupted before, or nothing shows gradients."""
    first_rounds: FirstRounds | None = None
    """What the first rounds of such loops, or steps of such processes, looked like; None where
    `scales` tell more, and if it is not known, as of older files."""
    seen: str = field(default="", repr=False)
    """Marks of the recorded runs it was trained on, see `haltwise._core.seen`; empty for a family,
    and if they are not known, as of older files."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from, for people: training settings, command, steps, seconds,
    metrics and versions. Nothing is decided by it."""

    def __post_init__(self) -> None:
        require(self.price > 0, f"the card's price must be above 0, got {self.price}")
        for name in ("horizon", "price_range"):
            value = getattr(self, name)
            require(value >= 1, f"the card's {name} must be at least 1, got {value}")
        size = self.readout_size
        require(
            0 <= size <= _MOST_READ_OUT and (size == 0 or self.rule is None),
            f"the card's readout_size must be 0 to {_MOST_READ_OUT:,}, and 0 beside an update "
            f"rule, got {size}",
        )
        require(
            all(each.policy is not None and each.unit is not None for each in self.certificates),
            "a certificate on a card must name the policy that it is of; this one is of a table",
        )
        require_marks(self.seen)

    @property
    def summary(self) -> str:
        """What it was trained for, in a line."""
        stopped = "a loop" if self.rule is None else self.rule.name
        seen = "recorded runs" if self.family is None else label(self.family.name)
        prices = f"price {self.price:g}"
        if self.price_range > 1:
            low, high = self.price / self.price_range, self.price * self.price_range
            prices += f", {low:.3g} to {high:.3g} seen"
        known = " and ".join(unit.value for unit in self.policies)
        return (
            f"{self.method.name} stops {stopped} on {seen} within {self.horizon} steps; {prices}; "
            + (f"policies for {known}" if known else "no policy yet")
        )

    def __repr__(self) -> str:
        return f"Card({self.summary})"

    def with_certificate(self, certificate: Certificate) -> Self:
        """The card with this stop and its certificate, and that of the other unit if it is as good.

        Raises:
            InputError: The certificate is of a table and names no stop.
        """
        policy, unit = certificate.policy, certificate.unit
        require(
            policy is not None and unit is not None,
            "a certificate of a table names no stop; certify the model by haltwise.certify",
        )
        assert policy is not None
        assert unit is not None
        others = [
            each
            for each in self.certificates
            if each.unit is not unit
            and (each.model, each.price) == (certificate.model, certificate.price)
        ]
        policies = {**self.policies, unit: policy}
        return replace(self, policies=policies, certificates=(*others, certificate))

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same card."""
        plain = replace(self, policies={}, certificates=(), provenance=dict(self.provenance))
        document = asdict(plain)
        # So that fingerprints of older files stay.
        for name in ("engine", "readout_size", "first_rounds", "seen"):
            if not document[name]:
                del document[name]
        document["unit"] = self.unit.value
        document["policies"] = {
            unit.value: policy_to_json(policy) for unit, policy in self.policies.items()
        }
        document["certificates"] = [each.to_json() for each in self.certificates]
        return {"format": _FORMAT, **document}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], own: Iterable[type] = ()) -> Self:
        """The card that `to_json` wrote; every value is checked. For `own` see `haltwise.load`.

        Raises:
            InputError: It is no card, of another format, or a value is impossible.
        """
        with refusing_others("this is not the card of a halting model", with_cause=True):
            given = dict(document)
            found = given.pop("format", None)
            require(
                found in (_FORMAT, _WITHOUT_CERTIFICATES),
                "the card is of another format; train the weights again with this version",
            )
            if found == _WITHOUT_CERTIFICATES:
                given["certificates"] = []
            given["halter"] = HalterSettings(**given["halter"])
            given.setdefault("engine", None)
            for name in ("method", "rule", "engine", "family"):
                missing = given[name] is None and name != "method"
                given[name] = None if missing else Choice(**given[name])
            if given["scales"] is not None:
                given["scales"] = Scales.from_json(given["scales"])
            if given.get("first_rounds") is not None:
                given["first_rounds"] = FirstRounds.from_json(given["first_rounds"])
            given["unit"] = CostUnit(given["unit"])
            given["policies"] = {
                CostUnit(unit): policy_from_json(policy, own)
                for unit, policy in given["policies"].items()
            }
            given["certificates"] = tuple(
                Certificate.from_json(each, own) for each in given["certificates"]
            )
            given.setdefault("maximizes", False)  # older files have none
            given.setdefault("readout_size", 0)
            given.setdefault("seen", "")
            plain = (
                "price",
                "horizon",
                "price_range",
                "readout_size",
                "observed",
                "keeps_best",
                "maximizes",
                "seen",
                "provenance",
            )
            require_types(cls.__init__, {name: given[name] for name in plain})
            return cls(**given)
