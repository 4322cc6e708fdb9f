"""The typed records of evaluations, and their files."""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.files import load_tensors, make_directory, read_json, save_tensors
from haltwise._core.json import from_json, to_json
from haltwise.evaluation.statistics import Interval
from haltwise.stop_rules import CostUnit

__all__ = [
    "Bin",
    "CurveRecord",
    "EvaluationRecord",
    "ExecutionRecord",
    "Frontier",
    "HeldOutRecord",
    "Interval",
    "OverSeeds",
    "Reliability",
    "StopFigures",
    "StoppingRecord",
    "StudyCell",
    "StudyRecord",
    "load_evaluations",
    "load_study",
    "save_evaluation",
]

STUDY = "study.json"
"""The file of a run's directory in which its report looks for what `haltwise study` wrote."""


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
    """Share of the items that end with at most 5 % of their initial excess; NaN where it is counted
    from no reference."""
    rank_correlation: float
    """Spearman's, of the costs with the oracle's."""


@final
@dataclass(frozen=True)
class Frontier:
    """Excess against cost: budgets, budgets mixed at random, and the stops beside them."""

    mean_excess: list[float]
    """Of ending at each step 0..T."""
    hull: list[int]
    """Budgets that no mixture of others beats."""
    cost_for_equal_excess: float
    """Least mean cost of mixed budgets with the excess of the stops; NaN if none comes so low."""
    saved: Interval
    """Share of that cost, or of T if none comes so low, that the stops save."""
    settings: list[tuple[float, float]]
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
    """Hazards beside the frequency of the oracle's stops (Guo et al. 2017, section 2)."""

    num_cases: int
    mean_hazard: float
    frequency: float
    error: float
    """Expected calibration error over the bins."""
    bins: list[Bin]


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
    """J less the oracle's: on such a share of the items at most that much."""
    frontier: Frontier
    reliability: Reliability | None
    has_reference: bool = True
    """Whether excess is counted above a loss that is known; if not, it is the loss itself."""
    share_rising: float = 0.0
    """Share of the items whose excess is higher at the last step than at the first."""
    direction: str = "min"
    """Whether lower or higher was better of what was given; if higher, its sign is changed."""

    @property
    def excess_name(self) -> str:
        """What excess is called: the loss, where no reference is known."""
        return "excess" if self.has_reference else "loss"

    @property
    def rises(self) -> bool:
        """Whether most excesses rise, as scores do of which higher is better."""
        return self.share_rising > 0.5

    @property
    def stops(self) -> StopFigures:
        """The figures of the stops judged."""
        return self.rules[self.judged]


@final
@dataclass(frozen=True)
class HeldOutRecord:
    """Networks on the test examples, mean and standard deviation over problems."""

    loss: float
    loss_sd: float
    accuracy: float
    accuracy_sd: float


@final
@dataclass(frozen=True)
class CurveRecord:
    """An optimizer that never stops: its excess at steps 0..T, over problems that begin finite."""

    mean: list[float]
    median: list[float]
    low: list[float]
    """5 % quantiles."""
    high: list[float]
    """95 % quantiles."""
    observed: list[float]
    """Mean of the losses seen, of minibatches where the task is stochastic."""
    num_nonfinite: int
    """Problems whose excess is not finite at some step, those that begin so among them."""
    held_out: HeldOutRecord | None
    learning_rate: float = math.nan
    """Where it was tuned."""
    at_edge: bool = False
    """Whether that lies at the edge of the grid, so that a wider one might do better."""


@final
@dataclass(frozen=True)
class ExecutionRecord:
    """Problems solved for real, those that halt leaving the batch; beside the best budget."""

    num_gradients: int
    num_gradients_fixed: int
    seconds: float
    seconds_fixed: float
    outcomes: dict[str, int]
    held_out: HeldOutRecord | None


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
    lbfgs: list[float]
    """L-BFGS' mean lowest excess after so many gradients; empty where it cannot work."""
    num_lbfgs: int
    """Problems it was run on."""


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


def save_evaluation(
    record: EvaluationRecord, arrays: Mapping[str, Tensor], directory: Path
) -> Path:
    """Write an evaluation and its arrays to one file, so that nothing can mix up two.

    It is `DIRECTORY/evaluation-OPTIMIZER-FAMILY-PRICE-HORIZON-SEED.safetensors`.

    Raises:
        InputError: The file cannot be written.
    """
    make_directory(directory)
    names = (record.optimizer, record.family, record.price, record.horizon, record.seed)
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
        f"{directory} holds no evaluation; run `haltwise evaluate {shlex.quote(str(directory))}` "
        "first",
    )
    return found


def load_study(directory: Path) -> StudyRecord | None:
    """The study in `directory`, None if there is none.

    Raises:
        InputError: The file is corrupt.
    """
    path = directory / STUDY
    return from_json(StudyRecord, read_json(path)) if path.exists() else None
