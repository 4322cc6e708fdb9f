"""What evaluations measure, as dataclasses, and their files.

Every record converts to JSON and back by `to_json` and `from_json`; numbers that are not finite,
which JSON does not know, are null there and NaN again when read.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, final, get_args, get_origin, get_type_hints

from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.files import load_tensors, make_directory, read_json, save_tensors
from haltwise.evaluation.statistics import Interval
from haltwise.stop_rules import CostUnit

__all__ = [
    "Bin",
    "CurveRecord",
    "EvaluationRecord",
    "ExecutionRecord",
    "Frontier",
    "GroupFigures",
    "HeldOut",
    "Interval",
    "OverSeeds",
    "Reliability",
    "StopFigures",
    "StoppingRecord",
    "StudyCell",
    "StudyRecord",
    "from_json",
    "load_evaluations",
    "load_study",
    "save_evaluation",
    "to_json",
]

Record = TypeVar("Record")

STUDY = "study.json"
"""Where `haltwise study --json` must write for the report of a run to show it."""

# --------------------------------------------------------------------------------- stopping


@final
@dataclass(frozen=True)
class StopFigures:
    """How good the stops of one policy are; J is excess at the stop + price * cost."""

    policy: str
    """The stop rule and what it returns."""
    j: Interval
    gain: Interval
    """Captured gain: 1 is the oracle, 0 the best fixed budget."""
    difference: Interval
    """Its J less that of the stops judged, paired; above 0 it is worse than they are."""
    mean_excess: float
    """At the stop, in units of the loss."""
    mean_cost: float
    sd_cost: float
    share_at_horizon: float
    share_solved: float
    """Share of the items that end with at most 5 % of their initial excess."""
    rank_correlation: float
    """Spearman's, of the costs with the oracle's."""


@final
@dataclass(frozen=True)
class Frontier:
    """Excess against cost: budgets, mixtures of budgets, and the stops judged beside them."""

    mean_excess: list[float]
    """Of ending at each step 0..T."""
    hull: list[int]
    """Budgets that no mixture of others beats."""
    excess_at_equal_cost: float
    """Least mean excess of budgets mixed at random that cost what the stops cost."""
    cost_for_equal_excess: float
    """Least mean cost of budgets mixed at random with the excess of the stops; T if none has."""
    reached: bool
    """Whether any has."""
    saved: Interval
    """Share of `cost_for_equal_excess` that the stops save."""
    settings: list[tuple[float, float]] = field(default_factory=list)
    """Mean cost and mean excess of the judged rule's other settings."""


@final
@dataclass(frozen=True)
class Bin:
    """Hazards of similar size, at the steps that the oracle reaches."""

    num_cases: int
    mean_hazard: float
    frequency: Interval
    """Share at which the oracle stops."""


@final
@dataclass(frozen=True)
class Reliability:
    """How far the hazards are probabilities of the oracle's stops (Guo et al. 2017, section 2)."""

    num_cases: int
    mean_hazard: float
    frequency: float
    error: float
    """Expected calibration error over the bins."""
    bins: list[Bin]


@final
@dataclass(frozen=True)
class GroupFigures:
    """One group by itself, with its own best fixed budget."""

    group: int
    num_items: int
    num_left_out: int
    j: float = math.nan
    fixed_j: float = math.nan
    oracle_j: float = math.nan
    gain: float = math.nan
    mean_cost: float = math.nan

    @property
    def failed(self) -> bool:
        """Whether a fixed budget is better, or nothing stayed finite."""
        return not self.j <= self.fixed_j + 1e-12 * abs(self.fixed_j)


@final
@dataclass(frozen=True)
class StoppingRecord:
    """How good stops are, in one unit of cost."""

    unit: CostUnit
    price: float
    num_items: int
    num_steps: int
    num_left_out: int
    """Items that did not stay finite."""
    judged: str
    """Name of the rule that all others are compared with."""
    rules: dict[str, StopFigures]
    """By name, `fixed` (the best fixed budget in hindsight) and `oracle` among them."""
    fixed_budget: int
    oracle_share_at_0: float
    oracle_share_at_horizon: float
    permuted_j: float
    """J if the stops judged were dealt to the items at random."""
    skill: Interval
    """What they owe to telling items apart: that J less their own."""
    regret_quantiles: dict[str, float]
    """J less the oracle's, at most that much on such a share of the items."""
    frontier: Frontier
    reliability: Reliability | None = None
    groups: list[GroupFigures] = field(default_factory=list)

    @property
    def stops(self) -> StopFigures:
        """The figures of the stops judged."""
        return self.rules[self.judged]

    def best(self, names: list[str] | None = None) -> str:
        """The rule of lowest J among `names`, or among all but those judged in hindsight."""
        hindsight = ("fixed", "oracle")
        names = [name for name in self.rules if name not in hindsight] if names is None else names
        return min(names, key=lambda name: self.rules[name].j.value)


# -------------------------------------------------------------------------------- evaluation


@final
@dataclass(frozen=True)
class HeldOut:
    """Networks on the test examples, mean and standard deviation over problems."""

    loss: float
    loss_sd: float
    accuracy: float
    accuracy_sd: float


@final
@dataclass(frozen=True)
class CurveRecord:
    """An optimizer that never stops: its excess at steps 0..T, over problems."""

    mean: list[float]
    median: list[float]
    low: list[float]
    """5 % quantiles."""
    high: list[float]
    """95 % quantiles."""
    observed: list[float]
    """Mean of the losses seen, of minibatches where the task is stochastic."""
    num_nonfinite: int
    learning_rate: float = math.nan
    """Where it was tuned."""
    at_edge: bool = False
    """Whether that lies at the edge of the grid, so that a wider one might do better."""
    held_out: HeldOut | None = None
    excess_at_equal_cost: dict[CostUnit, float] = field(default_factory=dict)
    """Mean excess at the mean cost of the stops judged."""
    cost_for_equal_excess: dict[CostUnit, int | None] = field(default_factory=dict)
    """First step of a mean excess as low as theirs; None if there is none."""


@final
@dataclass(frozen=True)
class ExecutionRecord:
    """Problems solved for real, those that halt leaving the batch."""

    num_gradients: int
    num_gradients_fixed: int
    """Of the best fixed budget."""
    seconds: float
    seconds_fixed: float
    mean_updates: float
    mean_excess: float
    outcomes: dict[str, int]
    held_out: HeldOut | None


@final
@dataclass(frozen=True)
class EvaluationRecord:
    """One held-out evaluation of a self-stopping optimizer."""

    optimizer: str
    family: str
    family_settings: dict[str, Any]
    price: float
    horizon: int
    seed: int
    num_problems: int
    environment: dict[str, str]
    """Versions, threads and device."""
    stopping: dict[CostUnit, StoppingRecord]
    execution: ExecutionRecord
    curves: dict[str, CurveRecord]
    """By optimizer; that of the evaluated one first."""
    others: dict[str, dict[CostUnit, StoppingRecord]]
    """Further self-stopping optimizers on the same problems."""
    lbfgs: list[float] = field(default_factory=list)
    """L-BFGS' mean lowest excess after so many gradients; empty where it cannot work."""
    num_lbfgs: int = 0
    """Problems it was run on."""


# ------------------------------------------------------------------------------------ studies


@final
@dataclass(frozen=True)
class OverSeeds:
    """A rule judged on several seeds of problems."""

    j: list[float]
    """Mean J, a number a seed."""
    gain: list[float]
    """Captured gain, a number a seed."""
    difference: Interval
    """J less that of the learned rule, over seeds."""
    stop_sd: float
    """Standard deviation of the cost within a seed, mean over seeds."""
    rank_correlation: float
    """Of the costs with the oracle's, mean over seeds."""


@final
@dataclass(frozen=True)
class StudyCell:
    """All rules at one price, in one unit of cost."""

    unit: CostUnit
    price: float
    judged: str
    """Name of the learned rule that all others are compared with."""
    best_baseline: str
    """Name of the tuned baseline of lowest mean J."""
    failures: list[int]
    """Seeds in which the learned rule is not below the best fixed budget and that baseline."""
    rules: dict[str, OverSeeds]


@final
@dataclass(frozen=True)
class StudyRecord:
    """Stop rules over several seeds of problems and several prices."""

    optimizer: str
    family: str
    horizon: int
    seeds: list[int]
    num_problems: int
    num_left_out: int
    """Problems of all seeds that did not stay finite."""
    cells: list[StudyCell]


# --------------------------------------------------------------------------------------- JSON


def to_json(value: Any) -> Any:
    """JSON of a record; see `from_json`."""
    if is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(to_json(key)): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(kind: type[Record], document: Any) -> Record:
    """The record of class `kind` that `to_json` wrote; every value is checked.

    Raises:
        InputError: It is no such record.
    """
    try:
        found: Record = _read(kind, document, "the record")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"this is no {kind.__name__} of this version ({error}); write it again"
        ) from None
    return found


def _read(hint: Any, value: Any, path: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if hint is float:
        hint, value = (int, float), math.nan if value is None else value
    elif NoneType in inner:
        return None if value is None else _read(inner[0], value, path)
    elif is_dataclass(hint):
        hints = get_type_hints(hint)
        known = {name: _read(hints[name], entry, f"{path}.{name}") for name, entry in value.items()}
        return hint(**known)  # type: ignore[operator]
    elif origin is dict:
        return {_read(inner[0], k, path): _read(inner[1], v, f"{path}.{k}") for k, v in value.items()}
    elif origin is list:
        return [_read(inner[0], entry, path) for entry in value]
    elif origin is tuple:
        return tuple(_read(each, entry, path) for each, entry in zip(inner, value, strict=True))
    elif issubclass(hint, Enum):
        return hint(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(f"{path} must not be {value!r}")
    return value


# --------------------------------------------------------------------------------------- files


def save_evaluation(
    record: EvaluationRecord, arrays: Mapping[str, Tensor], directory: Path
) -> Path:
    """Write an evaluation and the arrays behind it to one file, so that they cannot be mixed up.

    Args:
        record: What was measured.
        arrays: See `haltwise.evaluation.Evaluation`.
        directory: Created if missing; the file is
            `evaluation-OPTIMIZER-FAMILY-PRICE-HORIZON-SEED.safetensors`.

    Returns:
        The file.

    Raises:
        InputError: The file cannot be written.
    """
    make_directory(directory)
    names = (record.optimizer, record.family, f"{record.price:g}", record.horizon, record.seed)
    stem = re.sub(r"[^\w.+-]", "_", "-".join(("evaluation", *map(str, names))))
    path = directory / f"{stem}.safetensors"
    save_tensors(path, arrays, {"evaluation": to_json(record)})
    return path


def load_evaluations(directory: Path) -> list[tuple[EvaluationRecord, dict[str, Tensor]]]:
    """Every evaluation in `directory` with its arrays, in the order of file names.

    Raises:
        InputError: There is none, or a file is corrupt.
    """
    found = []
    for path in sorted(directory.glob("evaluation-*.safetensors")):
        arrays, metadata = load_tensors(path)
        found.append((from_json(EvaluationRecord, metadata.get("evaluation")), arrays))
    require(
        len(found) > 0,
        f"{directory} holds no evaluation; run `haltwise evaluate {directory}` first",
    )
    return found


def load_study(directory: Path) -> StudyRecord | None:
    """The study in `directory`, None if there is none.

    Raises:
        InputError: The file is corrupt.
    """
    path = directory / STUDY
    return from_json(StudyRecord, read_json(path)) if path.exists() else None
