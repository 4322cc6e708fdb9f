"""What is certified of a stop, or why nothing is: two typed records."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from typing import Any, NoReturn, Self, final

from haltwise._core.errors import InputError, refusing_others, require
from haltwise._core.json import from_json, to_json
from haltwise.stop_rules.documents import policy_from_json, policy_to_json
from haltwise.stop_rules.policy import CostUnit, StopPolicy

__all__ = ["Certificate", "Promise", "Refusal"]

_INDEPENDENT = "the problems are independent draws from one law, and so are those to come"
_FIXED = "; the thresholds and their order were fixed before their losses were known"
_EXCHANGEABLE = (
    "the next group is exchangeable with those recorded: it might as well have been any of them; "
    "nothing is assumed about the problems of one group"
)


@final
class Promise(Enum):
    """What a certificate is about."""

    MEAN = "mean"
    """The risk, with a confidence over the calibration problems."""
    NEXT_GROUP = "next group"
    """The risk in the next group, with a probability over the recorded groups and that one."""
    EXPECTATION = "expectation"
    """The expected risk in the next group, over the recorded groups and that one."""


@final
@dataclass(frozen=True)
class Certificate:
    """A bound on a risk, the stop that keeps it, and what it costs.

    Examples:
        >>> import torch
        >>> from haltwise.certificates import RiskTable, certify_table
        >>> losses = torch.zeros(100, 2, dtype=torch.bool)
        >>> losses[::3, 1] = True
        >>> savings = torch.tensor([[1.0, 3.0]]).expand(100, 2)
        >>> found = certify_table(RiskTable.of(losses, savings), level=0.05, confidence=0.9)
        >>> found
        Certificate(with 90 % confidence, the mean loss is at most 0.05: threshold 1 of 2, 100 \
problems, savings 1 of 1 uncertified)
        >>> Certificate.from_json(found.to_json()) == found
        True
    """

    promise: Promise
    risk: str
    """What is bounded, as a noun phrase."""
    level: float
    """The bound on the risk, in its own units."""
    confidence: float | None
    """None where the promise is an expectation."""
    bound: float
    """The largest loss of a problem that counts, in the units of the risk."""
    threshold: int
    """The place of the certified threshold among those tried, from the safest, 0, on."""
    num_thresholds: int
    num_problems: int
    """Problems that the certificate rests on."""
    num_groups: int | None
    """Groups that it rests on; None where it is about problems."""
    num_set_aside: int
    """Problems on which the thresholds were found."""
    num_clipped: int
    """Problems whose loss exceeded the bound somewhere, and counts as the bound."""
    mean_risk: float
    """The risk of these problems, or groups, under the threshold."""
    savings: float
    """What the threshold saves a problem on average."""
    uncertified_savings: float
    """The same where the risk of these problems alone need be at most the level."""
    policy: StopPolicy | None
    """The stop that is certified; None for a table of losses."""
    score_level: float | None
    """The score below which a run is given up, where that is certified and not a policy."""
    unit: CostUnit | None
    """What was charged."""
    price: float | None
    """c, at which a halting model was asked."""
    model: str | None
    """The digest of this model, without its policies, or of a rule on curves; None for a table."""
    cost_unit: str | None = None
    """What the cost of runs was counted in, where giving them up is certified."""
    budgets: tuple[float, float] | None = None
    """The least and the greatest budget of these runs."""

    def __post_init__(self) -> None:
        require(0 < self.level < self.bound, f"level must be in (0, {self.bound:g})")
        require(self.confidence is None or 0 < self.confidence < 1, "confidence must be in (0, 1)")
        require(
            0 <= self.threshold < self.num_thresholds and self.num_problems >= 1,
            "the threshold must be one of those tried, and at least one problem counted",
        )

    @property
    def kept(self) -> float:
        """Share of the uncertified savings that is kept; the rest is the price of certainty."""
        return self.savings / self.uncertified_savings if self.uncertified_savings else 1.0

    @property
    def statement(self) -> str:
        """What is certified, in words."""
        return f"{_opening(self.promise, self.confidence, self.risk)} is at most {self.level:g}" + (
            f" (a loss above {self.bound:g} counts as {self.bound:g})" if self.num_clipped else ""
        )

    @property
    def assumption(self) -> str:
        """What it rests on, in words."""
        if self.promise is not Promise.MEAN:
            return _EXCHANGEABLE
        # Levels at which runs are given up need no order: docs/certificates.md, Eq. (nested).
        return _INDEPENDENT + (_FIXED if self.score_level is None else "")

    def require(self) -> Self:
        """This certificate; see `Refusal.require`."""
        return self

    def require_for(self, model: str, policy: StopPolicy, price: float) -> None:
        """Refuse to speak for another model, stop or price than was certified.

        Args:
            model: Its digest, without its policies.
            policy: How it stops.
            price: What it is asked for.

        Raises:
            InputError: One of them differs; the message says which.
        """
        require(
            model == self.model,
            "the certificate is of other weights, or of a model set up otherwise; certify this "
            "one with haltwise certify",
        )
        require(
            policy == self.policy,
            "the model stops by another policy than was certified; certify it again with "
            "haltwise certify",
        )
        require(
            price == self.price,
            f"the certificate is for a price of {self.price:g}, not {price:g}; ask for that price, "
            "or certify this one with haltwise certify --price"
            if self.price is not None
            else "the certificate names no price",
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same certificate."""
        document: dict[str, Any] = to_json(replace(self, policy=None))
        if self.policy is not None:
            document["policy"] = policy_to_json(self.policy)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], own: Iterable[type] = ()) -> Self:
        """The certificate that `to_json` wrote; every value is checked.

        Args:
            document: The JSON object.
            own: Stop rules of the caller's that it may name.

        Raises:
            InputError: It is no certificate, or a value is impossible.
        """
        with refusing_others("this is no certificate", with_cause=True):
            given = dict(document)
            policy = given["policy"]
            found = _read(cls, {**given, "policy": None})
            return replace(found, policy=None if policy is None else policy_from_json(policy, own))

    def __repr__(self) -> str:
        counted = f"{self.num_problems} problems"
        if self.num_groups is not None:
            counted += f" in {self.num_groups} groups"
        return (
            f"Certificate({self.statement}: threshold {self.threshold + 1} of "
            f"{self.num_thresholds}, {counted}, savings {self.savings:.4g} of "
            f"{self.uncertified_savings:.4g} uncertified)"
        )


def _read(kind: type[Certificate], document: Mapping[str, Any]) -> Certificate:
    names = {item.name for item in fields(kind)}
    needed = {item.name for item in fields(kind) if item.default is MISSING}
    require(
        needed <= set(document) <= names,
        f"a certificate has the entries {', '.join(sorted(names))}, got "
        f"{', '.join(sorted(map(str, document)))}",
    )
    return from_json(kind, document)


@final
@dataclass(frozen=True)
class Refusal:
    """Why nothing is certified, and how much would be needed."""

    promise: Promise
    risk: str
    level: float
    confidence: float | None
    num_given: int
    """Problems, or groups where the promise is about groups."""
    num_needed: int | None
    """How many would do; None where more of the same would not."""
    reason: str
    """In words, with the way out."""

    @property
    def statement(self) -> str:
        """What is refused, in words."""
        counted = "problems" if self.promise is Promise.MEAN else "groups"
        needed = "" if self.num_needed is None else f", {self.num_needed} needed"
        return f"not certifiable: {self.num_given} {counted}{needed}"

    def require(self) -> NoReturn:
        """Insist on a certificate.

        Raises:
            InputError: With the reason.
        """
        opening = _opening(self.promise, self.confidence, self.risk)
        raise InputError(
            f"{self.statement}, to say that {opening} is at most {self.level:g}; {self.reason}"
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields as a JSON object."""
        document: dict[str, Any] = to_json(self)
        return document

    def __repr__(self) -> str:
        return f"Refusal({self.statement}; {self.reason})"


def _opening(promise: Promise, confidence: float | None, risk: str) -> str:
    if promise is Promise.EXPECTATION or confidence is None:
        return f"the {risk} expected in the next group"
    if promise is Promise.NEXT_GROUP:
        return f"with a probability of {confidence:.15g}, the {risk} in the next group"
    return f"with {100 * confidence:.15g} % confidence, the {risk}"
