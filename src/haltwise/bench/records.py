"""What StopBench measured, as a record of plain JSON values, and the figures read off it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from haltwise.bench.cases import Case
from haltwise.bench.domain import Question
from haltwise.bench.protocol import Judged
from haltwise.curves.curves import Floats
from haltwise.curves.learning import LOST
from haltwise.evaluation.statistics import Interval, jackknife, share_interval

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
    found = _interval(torch.div, cell.sums[f"saved@{key}"], case.sums["cost"])
    return _cut(found, 0.0)


def lost(case: BenchCase, cell: BenchCell, key: str) -> Interval:
    """The share of the successes that is lost."""
    columns = cell.sums[f"lost@{key}"], case.sums["successes"]
    found = _interval(lambda lost, all_: torch.where(all_ > 0, lost / all_, 0.0), *columns)
    return share_interval(found, *map(torch.tensor, columns))


def captured(case: BenchCase, cell: BenchCell, key: str) -> Interval:
    """Captured gain: 1 is the oracle, 0 the best equal budget in hindsight."""
    return _interval(
        lambda own, *bounds: _gain(_best(*bounds), own, *bounds),
        cell.sums[f"charge@{key}"],
        *_bounds(case, key),
    )


def failed_share(case: BenchCase) -> float:
    """What an oracle saves: the share of the cost of runs that never met their target."""
    whole = sum(case.sums["cost"])
    return sum(case.sums["failed"]) / whole if whole > 0 else 0.0


def lead(case: BenchCase, own: BenchCell, other: BenchCell, key: str) -> Interval:
    """How far a rule is ahead of another: in captured gain, or in the share of cost saved."""
    if case.question is Question.STOP:
        sums = own.sums[f"charge@{key}"], other.sums[f"charge@{key}"]
        return _interval(
            lambda own, other, *bounds: _gain(other, own, *bounds), *sums, *_bounds(case, key)
        )
    sums = own.sums[f"saved@{key}"], other.sums[f"saved@{key}"]
    found = _interval(lambda own, other, cost: (own - other) / cost, *sums, case.sums["cost"])
    return _cut(found, -1.0)


def _bounds(case: BenchCase, key: str) -> tuple[Any, Any]:
    """What the oracle is charged, and equal budgets."""
    return case.sums[f"oracle@{key}"], case.fixed[key]


def _best(oracle: Tensor, fixed: Tensor) -> Tensor:
    """What the best equal budget is charged."""
    del oracle
    return fixed.amin(1, keepdim=True)


def _gain(paid: Tensor, own: Tensor, oracle: Tensor, fixed: Tensor) -> Tensor:
    """How much less than `paid` the own charge is, as a share of what an oracle gains."""
    best = _best(oracle, fixed)
    room = best - oracle
    same = torch.isclose(paid, own, rtol=_ROUNDING, atol=0.0)
    less = torch.where(same, 0.0, paid - own)
    return torch.where(room > _NOTHING * best.abs(), less / room, torch.nan)


def _over_groups(values: Floats, case: Case) -> list[float]:
    _, group = np.unique(case.shown.group, return_inverse=True)
    return [float(f"{each:.12g}") for each in np.bincount(group, values)]


def _cut(found: Interval, least: float) -> Interval:
    """The interval of a share, or of the difference of two, which is no less than `least`."""
    return Interval(found.value, max(found.low, least), min(found.high, 1.0))


def _interval(statistic: Callable[..., Tensor], *columns: Any) -> Interval:
    """A statistic of means over groups, [R, k] of each column, with its 95 % interval.

    Whole groups are left out in turn. However few they are, the interval says how little that is.
    """
    tables = [torch.tensor(each, dtype=torch.float64, device="cpu") for each in columns]
    tables = [table.reshape(len(table), -1) for table in tables]
    sizes = [table.shape[1] for table in tables]
    (found,) = jackknife(lambda means: statistic(*means.split(sizes, 1)), torch.cat(tables, 1))
    return found
