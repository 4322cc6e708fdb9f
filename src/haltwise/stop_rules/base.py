"""Stop rules: fed one step of a whole batch at a time, they answer which problems stop, and why."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from haltwise._core.errors import CalibrationWarning, InputError, require
from haltwise._core.tensors import map_tensors

if TYPE_CHECKING:
    from haltwise.stop_rules.accounts import CostUnit, Calibration, ReturnedIterate
    from haltwise.stop_rules.composition import AllOf, AnyOf

__all__ = [
    "LevelRule",
    "StepObservation",
    "StopRule",
    "Traces",
    "decide_all",
    "decisions",
    "decisions_and_reasons",
]

_NUM_NEEDED = 50  # problems, for a threshold


class StepObservation(NamedTuple):
    """What a stop rule may know at step t, when the gradient at theta_t has been seen.

    Attributes:
        step: t.
        loss: Observed loss at theta_t, shape [B].
        log_grad_norm: log of the root mean square of the gradient's entries, shape [B].
        increments: Of the softmax posterior, the prior's included, shape [B, 2]; see
            `HaltingOutput`.
        hazard_logits: Of the stick-breaking posterior, shape [B, 2].
        hold_logits: log-odds that theta_t is better than theta_{t+1}, shape [B].

    All but the step and the loss are None where nobody knows them.
    """

    step: int
    loss: Tensor
    log_grad_norm: Tensor | None = None
    increments: Tensor | None = None
    hazard_logits: Tensor | None = None
    hold_logits: Tensor | None = None

    def signal(self, name: str) -> Tensor:
        """The field `name`; an `InputError` that says so where it is not known."""
        return _known(self, name)


def _known(record: "StepObservation | Traces", name: str) -> Tensor:
    value = getattr(record, name)
    if value is None:
        raise InputError(
            f"{name} is needed here, but these problems come without it; record it with the "
            "losses, or choose a rule that needs the loss alone, such as Patience"
        )
    found: Tensor = value
    return found


@final
@dataclass(frozen=True)
class Traces:
    """What n problems went through in T steps, and what each stop would have been worth.

    They may come from anybody's loop; what is not known is None, and a rule that needs it says so.
    """

    loss: Tensor
    """Observed loss at theta_0..theta_T, shape [n, T+1]."""
    excess: Tensor
    """Scored loss above the reference at theta_0..theta_T, shape [n, T+1]; the observed loss
    itself where there is nothing better."""
    log_grad_norm: Tensor | None = None
    """Shape [n, T+1]."""
    increments: Tensor | None = None
    """At theta_0..theta_{T-1}, shape [n, T, 2]."""
    hazard_logits: Tensor | None = None
    """At theta_0..theta_{T-1}, shape [n, T, 2]."""
    hold_logits: Tensor | None = None
    """At theta_0..theta_{T-1}, shape [n, T]."""

    def __post_init__(self) -> None:
        require(self.loss.ndim == 2, f"losses must be a matrix [n, T+1], got {self.loss.ndim}-D")
        per_step = (self.num_problems, self.num_steps)
        expected = {
            "excess": self.loss.shape,
            "log_grad_norm": self.loss.shape,
            "increments": (*per_step, 2),
            "hazard_logits": (*per_step, 2),
            "hold_logits": per_step,
        }
        shapes = {
            name: tuple(value.shape)
            for name in ("loss", *expected)
            if (value := getattr(self, name)) is not None
        }
        require(
            all(shape == tuple(expected.get(name, shape)) for name, shape in shapes.items()),
            "traces must have shapes [n, T+1], the head's outputs [n, T, 2] and [n, T]; got "
            + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
        )

    @property
    def num_problems(self) -> int:
        """The number of problems, n."""
        return self.loss.shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.loss.shape[1] - 1

    def signal(self, name: str) -> Tensor:
        """The field `name`; an `InputError` that says so where it is not known."""
        return _known(self, name)

    def select(self, index: Tensor) -> "Traces":
        """The problems at `index` (int64 [K])."""
        return map_tensors(self, lambda value: value.index_select(0, index))

    def __iter__(self) -> Iterator[StepObservation]:
        """The steps 0..T-1, in order."""
        for step in range(self.num_steps):
            yield StepObservation(
                step,
                self.loss[:, step],
                _at(self.log_grad_norm, step),
                _at(self.increments, step),
                _at(self.hazard_logits, step),
                _at(self.hold_logits, step),
            )


def _at(value: Tensor | None, step: int) -> Tensor | None:
    return None if value is None else value[:, step]


class StopRule(ABC):
    """When to stop. Frozen settings; what it remembers of the problems travels as state.

    A decision at step t uses nothing later than the gradient at theta_t. What it decides about
    (taking the update g_t, or asking for the gradient at theta_{t+1}) is the caller's affair:
    see `haltwise.stop_rules.accounts`.

    Rules compose: `a | b` stops where either does, `a & b` where both do at the same step.
    """

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it may stop a problem, in words."""
        return (repr(self),)

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        """The memory before the first step; tensors [num_problems, ...] in the dtype of `like`."""
        del num_problems, like
        return {}

    @abstractmethod
    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Which problems stop at this step, bool [B], and the memory for the next."""

    def why(self, stop: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """Which of `reasons` stops each problem, int64 [B]; meaningful where it stops.

        Args:
            stop: What `step` just said, bool [B].
            memory: What it returned beside it.
        """
        del memory
        return torch.zeros_like(stop, dtype=torch.int64)

    def __or__(self, other: "StopRule") -> "AnyOf":
        from haltwise.stop_rules.composition import AnyOf

        return AnyOf((self, other))

    def __and__(self, other: "StopRule") -> "AllOf":
        from haltwise.stop_rules.composition import AllOf

        return AllOf((self, other))

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor) -> list[Self]:
        """Settings worth trying on traces that were set aside for tuning.

        Args:
            traces: The tuning problems.
            costs: excess + price * cost of ending at each step 0..T, shape [n, T+1].
        """
        raise NotImplementedError(f"{cls.__name__} has nothing to tune")

    @classmethod
    def calibrate(
        cls,
        traces: Traces,
        *,
        price: float | None = None,
        budget: float | None = None,
        risk: float | None = None,
        account: "CostUnit | None" = None,
        recalls: "tuple[ReturnedIterate, ...] | None" = None,
        **settings: Any,
    ) -> "Calibration":
        """The setting of this rule that serves best on traces that were set aside for it.

        Exactly one of `price`, `budget` and `risk` says what is wanted; see
        `haltwise.stop_rules.accounts.calibrate`, which chooses among the rule's `candidates`. Those
        that are fitted to a price take, where none is given, the mean gain of a step.

        Args:
            traces: At least 50 problems. Those whose excess is not finite throughout are left
                out, with a warning.
            price: c: least mean excess + c * cost.
            budget: Least mean excess at a mean cost of at most this.
            risk: Least mean cost at a mean excess of at most this, with 95 % confidence.
            account: What is counted; `CostUnit.UPDATES` unless told otherwise.
            recalls: What may be returned at a stop; `ReturnedIterate.CURRENT` counting updates and
                `ReturnedIterate.NEXT` counting gradients unless told otherwise.
            settings: For `candidates`, for instance `output=BEFORE`.

        Raises:
            InputError: Too few problems, or no candidate is within the budget or the risk.

        Warns:
            CalibrationWarning: Problems were left out, or the price is so high that every
                problem is best stopped at once.
        """
        from haltwise.halting import accounts

        account = account or accounts.CostUnit.UPDATES
        kept = traces.excess.isfinite().all(1).nonzero().squeeze(1)
        if len(kept) < traces.num_problems:
            warnings.warn(
                f"{traces.num_problems - len(kept)} of {traces.num_problems} problems are left "
                "out of the calibration: their excess loss is not finite at every step",
                CalibrationWarning,
                stacklevel=2,
            )
            traces = traces.select(kept)
        require(
            len(kept) >= _NUM_NEEDED,
            f"calibration needs at least {_NUM_NEEDED} problems, got {len(kept)}; record more",
        )
        if price is not None and accounts.stops_at_once(traces, account, price):
            warnings.warn(
                f"at a price of {price:g} every one of the {len(kept)} problems is best stopped at "
                f"its first step (cost counted in {account.value}): nothing is worth computing; "
                "lower the price",
                CalibrationWarning,
                stacklevel=2,
            )
        mean = traces.excess.double().mean(0)
        gain = (mean[0] - mean.min()).item() / max(traces.num_steps, 1)
        table = accounts.costs(traces.excess, gain if price is None else price)
        find: Any = cls.candidates
        return accounts.calibrate(
            find(traces, table, **settings),
            traces,
            account,
            price=price,
            budget=budget,
            risk=risk,
            recalls=recalls,
        )


class LevelRule(StopRule):
    """A rule that stops at the first t at which some statistic reaches a level.

    Settings that differ in nothing but the level share the statistic, so many levels are tried at
    the cost of one; see `decide_all`.
    """

    level_setting: ClassVar[str]
    """The field that holds the level; the only one of two settings that may differ."""

    @property
    def level(self) -> float:
        """What the statistic must reach."""
        value: float = getattr(self, self.level_setting)
        return value

    @abstractmethod
    def statistic(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The statistic of each problem at this step, shape [B], and the memory for the next."""

    @final
    def step(self, seen: StepObservation, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        statistic, memory = self.statistic(seen, memory)
        return statistic >= self.level, memory


def decide_all(rules: Iterable[StopRule], traces: Traces) -> Iterator[tuple[StopRule, Tensor]]:
    """Each rule with its `decisions`, int64 [n]; those that differ in a level alone at once."""
    shared: dict[object, Tensor] = {}
    for rule in rules:
        if not isinstance(rule, LevelRule):
            yield rule, decisions(rule, traces)
            continue
        others = {**vars(rule), rule.level_setting: None}
        key = (type(rule), *others.values())
        if key not in shared:
            shared = {key: _highest_so_far(rule, traces)}
        yield rule, (shared[key] < rule.level).sum(0)


def _highest_so_far(rule: LevelRule, traces: Traces) -> Tensor:
    """The largest statistic at steps 0..t, shape [T, n]; -inf where there is none."""
    memory = rule.init(traces.num_problems, traces.loss)
    statistics = []
    for seen in traces:
        statistic, memory = rule.statistic(seen, memory)
        statistics.append(statistic)
    if not statistics:
        return traces.loss.new_empty(0, traces.num_problems)
    stacked = torch.stack(statistics)
    return stacked.masked_fill(stacked.isnan(), -torch.inf).cummax(0).values


def decisions(rule: StopRule, traces: Traces) -> Tensor:
    """The step of the first stop of each problem, T where it never stops; int64 [n]."""
    return decisions_and_reasons(rule, traces)[0]


def decisions_and_reasons(rule: StopRule, traces: Traces) -> tuple[Tensor, Tensor]:
    """`decisions`, and which of `rule.reasons` each is due to, -1 where none is; int64 [n]."""
    memory = rule.init(traces.num_problems, traces.loss)
    stopped = torch.full(
        (traces.num_problems,), traces.num_steps, dtype=torch.int64, device=traces.loss.device
    )
    reason = torch.full_like(stopped, -1)
    for seen in traces:
        stop, memory = rule.step(seen, memory)
        first = stop & (stopped == traces.num_steps)
        stopped = torch.where(first, seen.step, stopped)
        reason = torch.where(first, rule.why(stop, memory), reason)
    return stopped, reason


def quantile_grid(values: Tensor, num: int) -> list[float]:
    """`num` levels that spread the finite `values` evenly, for thresholds to try."""
    flat = values[values.isfinite()].flatten().double()
    require(len(flat) > 0, "no finite value to choose thresholds from")
    flat = flat.sort().values
    ranks = torch.linspace(0, len(flat) - 1, num).round().long()
    return sorted(set(flat[ranks].tolist()))
