"""Records as tables: cells to read, and the unrounded numbers behind them for CSV files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, final

from haltwise.evaluation import EvaluationRecord, StoppingRecord, StudyRecord
from haltwise.evaluation.records import CurveRecord, StudyCell
from haltwise.report.formats import (
    MISSING,
    Cell,
    Share,
    Spread,
    columns_of,
    num,
    plain,
    raw,
    text,
)
from haltwise.report.palette import label
from haltwise.stop_rules import CostUnit

__all__ = [
    "Table",
    "flatten",
    "learning_table",
    "margins",
    "optimizers_table",
    "others_table",
    "overview_table",
    "rules_table",
    "study_table",
]


@final
@dataclass(frozen=True)
class Table:
    """A table to read."""

    title: str
    columns: Sequence[str]
    """Headings; the first column names the rows."""
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """How to read it."""
    strong: int | None = None
    """The row that matters most."""
    links: Sequence[str] = ()
    """Where the names of the rows lead, if anywhere."""

    @property
    def texts(self) -> list[list[str]]:
        """Cells as they are read."""
        return [[text(cell) for cell in row] for row in self.rows]

    @property
    def data(self) -> dict[str, Any]:
        """Headings and rows of a CSV file."""
        cells = list(zip(*self.rows, strict=True))
        heads = [columns_of(*pair) for pair in zip(self.columns, cells, strict=True)]
        rows = [
            [
                value
                for part, cell in zip(heads, row, strict=True)
                for value in ([None] * len(part) if cell is None else raw(cell))
            ]
            for row in self.rows
        ]
        return {"columns": [head for part in heads for head in part], "rows": rows}


def rules_table(record: StoppingRecord, *, wide: bool = True) -> Table:
    """J, captured gain and cost of every rule, in one unit of cost.

    Args:
        record: The stops judged.
        wide: Whether there is room for all columns, which a terminal lacks.
    """
    names = sorted(record.rules, key=lambda name: record.rules[name].j.value)
    rows: list[list[Cell]] = []
    for name in names:
        found = record.rules[name]
        gain = None if name in ("fixed", "oracle") else found.gain
        cost = Spread(found.mean_cost, found.sd_cost)
        rows.append([label(name), found.j.value, gain, cost])
        if wide:
            more = None if name == record.judged else found.difference
            rows[-1] += [more, found.mean_excess, Share(found.share_solved)]
    columns = ["stop rule", "J", "captured gain", "cost"]
    if wide:
        columns += [f"J above {label(record.judged)}", "excess at the stop", "solved"]
    return Table(
        f"J at a price of {plain(record.price)}, cost counted in {record.unit.value}",
        columns,
        rows,
        "J: mean excess loss at the stop plus price x cost, lower is better. Captured gain: 1 is "
        "the oracle, 0 the best fixed budget, both chosen in hindsight. Intervals are 95 %; cost "
        "is mean ± standard deviation"
        + ("; solved: ends with at most 5 % of its initial excess loss." if wide else "."),
        names.index(record.judged),
    )


def overview_table(records: Sequence[EvaluationRecord], anchors: Sequence[str]) -> Table:
    """One line per evaluation, where a page holds several."""
    rows: list[list[Cell]] = []
    for record in records:
        judged = record.stopping[CostUnit.GRADIENTS]
        own = judged.stops
        rows.append(
            [
                f"{record.optimizer} on {record.family}",
                plain(record.price),
                record.seed,
                own.gain,
                Spread(own.mean_cost, own.sd_cost),
                judged.frontier.saved,
            ]
        )
    return Table(
        f"{len(records)} evaluations",
        ["evaluation", "price", "seed", "captured gain", "gradients", "saved at equal loss"],
        rows,
        "Counted in gradients; saved: share of the gradients that fixed budgets need for the same "
        "mean loss.",
        links=[f"#{anchor}" for anchor in anchors],
    )


def optimizers_table(record: EvaluationRecord) -> Table:
    """Optimizers that never stop: their losses, and what they need for the loss at the stops."""
    stops = record.stopping[CostUnit.GRADIENTS].stops
    rows: list[list[Cell]] = []
    for name, curve in record.curves.items():
        reached = [step for step, mean in enumerate(curve.mean) if mean <= stops.mean_excess]
        rows.append(
            [
                name,
                curve.learning_rate,
                _between(curve, stops.mean_cost),
                min(reached, default=None),
                curve.mean[-1],
                sum(curve.mean[1:]),
            ]
        )
    columns = ["optimizer", "learning rate", f"excess at {num(stops.mean_cost)} gradients"]
    columns += [f"gradients to {num(stops.mean_excess)}", f"excess at {record.horizon}", "sum"]
    return Table(
        "Optimizers without stopping",
        columns,
        rows,
        f"Mean excess loss: after the {num(stops.mean_cost)} gradients at which "
        f"{record.optimizer} stops itself on average, and the first step as low as the "
        f"{num(stops.mean_excess)} it stops at; at the horizon, and summed over all steps. "
        "Learning rates were tuned on other problems.",
        0,
    )


def _between(curve: CurveRecord, cost: float) -> float:
    """The mean excess at a cost between two steps."""
    low = int(cost)
    high = min(low + 1, len(curve.mean) - 1)
    return (1 - (cost - low)) * curve.mean[low] + (cost - low) * curve.mean[high]


def learning_table(record: EvaluationRecord) -> Table | None:
    """How networks learn without stopping: losses seen, and test examples classified."""
    rows: list[list[Cell]] = []
    for name, curve in record.curves.items():
        if curve.held_out is None:
            continue
        seen, last = curve.observed[1:], curve.observed[1:][-5:]
        held_out = curve.held_out
        accuracy = f"{held_out.accuracy:.4f} ± {held_out.accuracy_sd:.4f}"
        rows.append([name, curve.learning_rate, fmean(last), sum(seen), accuracy])
    if not rows:
        return None
    return Table(
        "Learning without stopping",
        ["optimizer", "learning rate", "last loss", "sum of losses", "test accuracy"],
        rows,
        "Losses of the minibatches as they come, mean over problems: of the last five steps, and "
        "summed over all. Accuracy on all test examples after the last step, mean ± standard "
        "deviation over problems.",
        0,
    )


def others_table(record: EvaluationRecord) -> Table | None:
    """Other self-stopping optimizers on the same problems, side by side."""
    if not record.others:
        return None
    rows: list[list[Cell]] = []
    for name, records in {record.optimizer: record.stopping, **record.others}.items():
        row: list[Cell] = [name]
        for unit in CostUnit:
            own, oracle = records[unit].stops, records[unit].rules["oracle"]
            cost = Spread(own.mean_cost, own.sd_cost)
            row += [own.j.value, oracle.j.value, own.gain, cost]
        rows.append(row)
    heads = ("J", "oracle’s J", "captured gain", "cost")
    return Table(
        "Self-stopping optimizers side by side",
        ["optimizer", *(f"{head}, {unit.value}" for unit in CostUnit for head in heads)],
        rows,
        "J compares across optimizers. The gain does not quite: each is measured against the best "
        "fixed budget and the oracle on that optimizer's own trajectories.",
        0,
    )


def study_table(record: StudyRecord, unit: CostUnit) -> Table:
    """Captured gain of every rule over seeds, a column a price."""
    cells = [cell for cell in record.cells if cell.unit is unit]
    names = [name for name in cells[0].rules if name not in ("fixed", "oracle")]
    rows = [[label(name), *(_over_seeds(cell, name) for cell in cells)] for name in names]
    return Table(
        f"{record.optimizer} on {record.family}: captured gain, counted in {unit.value}",
        ["stop rule", *(f"price {plain(cell.price)}" for cell in cells)],
        rows,
        f"Mean ± standard deviation over {len(record.seeds)} seeds of problems; 1 is the oracle, 0 "
        "the best fixed budget. All rules judge the same trajectories; settings were chosen on "
        "separate problems.",
        names.index(cells[0].judged),
    )


def _over_seeds(cell: StudyCell, name: str) -> str:
    gains = cell.rules[name].gain if name in cell.rules else []
    if not gains or any(map(math.isnan, gains)):
        return MISSING
    return f"{fmean(gains):.3f} ± {stdev(gains):.3f}"


def margins(record: StudyRecord, unit: CostUnit) -> list[str]:
    """How far the learned rule is ahead of the best baseline, a sentence a price."""
    return [
        f"Price {plain(cell.price)}: J of {label(cell.best_baseline)}, the best baseline, is "
        f"{text(cell.rules[cell.best_baseline].difference)} above that of the "
        f"{label(cell.judged)}; {len(cell.failures)} of {len(record.seeds)} seeds failed."
        for cell in record.cells
        if cell.unit is unit
    ]


def flatten(tree: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of a dotted name and a value."""
    if isinstance(tree, Mapping) and tree:
        return [
            line
            for key, value in tree.items()
            for line in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if tree is None or tree in ({}, "", []):
        return [(prefix, MISSING)]
    if isinstance(tree, list):
        return [(prefix, ", ".join(shown for entry in tree for _, shown in flatten(entry)))]
    return [(prefix, f"{tree:.6g}" if isinstance(tree, float) else str(tree))]
