"""What StopBench measured, as a record of plain JSON values, and the figures read off it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch

from haltwise.bench.cases import Case
from haltwise.bench.domain import Question
from haltwise.bench.protocol import Judged
from haltwise.curves.curves import Floats
from haltwise.curves.learning import LOST
from haltwise.evaluation.statistics import Interval, share_interval

__all__ = [
    "BenchCase",
    "BenchCell",
    "BenchRecord",
    "captured",
    "case_of",
    "cell_of",
    "failed_share",
    "lead",
    "lost",
    "saved",
]

_DRAWS = 1000  # of the bootstrap
_ROUNDING = 1e-11  # of sums, which are kept to twelve digits
_NOTHING = 1e-12


@final
@dataclass(frozen=True)
class BenchCase:
    """One question on one domain, and what hindsight makes of it: sums over the runs of a group."""

    domain: str
    question: Question
    title: str
    num_runs: int
    num_left_out: int
    digest: str
    """Of the runs."""
    keys: list[str]
    """Prices, or the shares of successes that may be lost."""
    groups: list[str]
    sums: dict[str, list[float]]
    """`runs`; where runs stop early `oracle@PRICE`; where they are given up `cost`, `failed`, the
    cost of those that never met their target, and `successes`."""
    fixed: dict[str, list[list[float]]]
    """Charges of equal budgets, by price: groups, then shares of the budget."""
    given_price: float | None = None
    """Of a unit of cost, in units of the loss, where the one price was given like that."""


@final
@dataclass(frozen=True)
class BenchCell:
    """One rule under one question on one domain."""

    domain: str
    question: Question
    rule: str
    digest: str
    """Of the runs, and of the rule if it is a file."""
    sums: dict[str, list[float]]
    """Of its figures, see `Judged`, over the runs of each group; empty if it does not apply."""
    settings: dict[str, list[str]]
    """The setting and the level chosen for each fold, by price or share."""
    seconds: float


@final
@dataclass(frozen=True)
class BenchRecord:
    """All that was measured so far."""

    settings: dict[str, str]
    """What the runs are made of."""
    cases: dict[str, BenchCase] = field(default_factory=dict)
    """By DOMAIN/QUESTION."""
    cells: dict[str, BenchCell] = field(default_factory=dict)
    """By DOMAIN/QUESTION/RULE."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a domain is missing."""

    def rules(self, question: Question) -> list[str]:
        """The rules that apply to a question, in the order of the alphabet."""
        cells = self.cells.values()
        return sorted({cell.rule for cell in cells if cell.question is question and cell.sums})

    def of(self, question: Question) -> dict[str, BenchCase]:
        """The cases of a question, by name."""
        return {name: case for name, case in self.cases.items() if case.question is question}

    def cell(self, case: str, rule: str) -> BenchCell | None:
        """What a rule did, None if it does not apply or is not measured yet."""
        found = self.cells.get(f"{case}/{rule}")
        return found if found is not None and found.sums else None


def case_of(name: str, title: str, case: Case, given_price: float | None = None) -> BenchCase:
    """Sum what hindsight makes of a case."""
    shown = case.shown
    sums = {"runs": np.ones(shown.num_runs)}
    fixed: dict[str, list[list[float]]] = {}
    if case.question is Question.STOP:
        for price in case.prices:
            sums[f"oracle@{price:g}"] = case.oracle(price)
            table = case.fixed(price)
            columns = [_over_groups(column, case) for column in table.T]
            fixed[f"{price:g}"] = [list(row) for row in zip(*columns, strict=True)]
    else:
        met = shown.succeeded
        sums |= {"cost": shown.spent, "failed": np.where(met, 0.0, shown.spent)}
        sums["successes"] = met.astype(float)
    keys = [f"{key:g}" for key in (case.prices if fixed else LOST)]
    return BenchCase(
        name, case.question, title, shown.num_runs, case.num_left_out, case.digest, keys,
        list(map(str, np.unique(shown.group))),
        {key: _over_groups(values, case) for key, values in sums.items()}, fixed, given_price,
    )  # fmt: skip


def cell_of(
    name: str, rule: str, case: Case, judged: Judged | None, digest: str, seconds: float
) -> BenchCell:
    """Sum what a rule did."""
    found = judged or Judged({}, {})
    sums = {key: _over_groups(values, case) for key, values in found.figures.items()}
    return BenchCell(name, case.question, rule, digest, sums, found.settings, round(seconds, 2))


def saved(case: BenchCase, cell: BenchCell, key: str) -> Interval:
    """The share of all cost that is saved where so many successes may be lost."""
    columns = {"saved": cell.sums[f"saved@{key}"], "cost": case.sums["cost"]}
    return _bootstrap(case, columns, lambda sums: sums["saved"] / sums["cost"])


def lost(case: BenchCase, cell: BenchCell, key: str) -> Interval:
    """The share of the successes that is lost."""
    columns = {"lost": cell.sums[f"lost@{key}"], "all": case.sums["successes"]}
    found = _bootstrap(case, columns, lambda sums: sums["lost"] / np.maximum(sums["all"], 1))
    return share_interval(found, *(torch.tensor(column) for column in columns.values()))


def captured(case: BenchCase, cell: BenchCell, key: str) -> Interval:
    """Captured gain: 1 is the oracle, 0 the best equal budget in hindsight."""
    columns = {"own": cell.sums[f"charge@{key}"], **_bounds(case, key)}
    return _bootstrap(case, columns, lambda sums: _gain(sums["fixed"].min(-1), sums))


def failed_share(case: BenchCase) -> float:
    """What an oracle saves: the share of the cost of runs that never met their target."""
    whole = sum(case.sums["cost"])
    return sum(case.sums["failed"]) / whole if whole > 0 else 0.0


def lead(case: BenchCase, own: BenchCell, other: BenchCell, key: str) -> Interval:
    """How far a rule is ahead of another: in captured gain, or in the share of cost saved."""
    if case.question is Question.STOP:
        name = f"charge@{key}"
        columns = {"own": own.sums[name], "other": other.sums[name], **_bounds(case, key)}
        return _bootstrap(case, columns, lambda sums: _gain(sums["other"], sums))
    name = f"saved@{key}"
    columns = {"own": own.sums[name], "other": other.sums[name], "cost": case.sums["cost"]}
    return _bootstrap(case, columns, lambda sums: (sums["own"] - sums["other"]) / sums["cost"])


def _bounds(case: BenchCase, key: str) -> dict[str, Any]:
    return {"oracle": case.sums[f"oracle@{key}"], "fixed": case.fixed[key]}


def _gain(paid: Floats, sums: Mapping[str, Floats]) -> Floats:
    """How much less than `paid` the own sum is, as a share of what an oracle gains."""
    best, own = sums["fixed"].min(-1), sums["own"]
    room = best - sums["oracle"]
    with np.errstate(invalid="ignore", divide="ignore"):
        less = np.where(np.isclose(paid, own, rtol=_ROUNDING, atol=0.0), 0.0, paid - own)
        return np.where(room > _NOTHING * np.abs(best), less / room, np.nan)


def _over_groups(values: Floats, case: Case) -> list[float]:
    _, group = np.unique(case.shown.group, return_inverse=True)
    return [float(f"{each:.12g}") for each in np.bincount(group, values)]


def _bootstrap(
    case: BenchCase,
    columns: Mapping[str, Any],
    statistic: Callable[[Mapping[str, Floats]], Floats],
) -> Interval:
    """A statistic of sums over groups with its 95 % interval, groups drawn with replacement."""
    num = len(case.groups)
    tables = {name: np.asarray(column, float) for name, column in columns.items()}
    draws = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), _DRAWS)
    weights = np.concatenate((np.ones((1, num)), draws))
    values = statistic({name: weights @ table for name, table in tables.items()})
    drawn = values[1:][~np.isnan(values[1:])]  # where there is anything to gain
    ends = np.quantile(drawn, (0.025, 0.975)) if num > 1 and len(drawn) else (np.nan, np.nan)
    return Interval(float(values[0]), float(ends[0]), float(ends[1]))
